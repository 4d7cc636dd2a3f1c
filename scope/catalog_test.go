package scope_test

import (
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

func en(text string) map[string]string { return map[string]string{"en": text} }

func TestBuiltIn(t *testing.T) {
	c := scope.BuiltIn()
	names := []string{"file.read", "file.write", "member.read", "message.read", "message.write", "reaction.write"}
	require.Equal(t, names, c.Names())
	for _, name := range names {
		a, ok := c.Lookup(name)
		require.True(t, ok)
		require.Equal(t, name, a.Name)
		require.Equal(t, 1, a.Cost)
		require.NotEqual(t, "unknown", a.Risk.String())
		require.NotEmpty(t, a.Words["en"])
		require.NotEmpty(t, a.Words["zh"])
		require.NotEqual(t, a.Words["en"], a.Words["zh"])
		if strings.HasSuffix(name, ".write") {
			require.Contains(t, a.Words["en"], "in your name", "people must see that it is done as them")
		}
	}
	_, ok := c.Lookup("message.delete")
	require.False(t, ok)

	// Nobody can change it for others.
	a, _ := c.Lookup("message.write")
	a.Words["en"] = "Pet kittens"
	c.Names()[0] = "x"
	require.Equal(t, "Write messages in your name", c.Words("message.write", "en"))
	require.Equal(t, names, c.Names())
	require.Equal(t, "Write messages in your name", scope.BuiltIn().Words("message.write", "en"))
}

func TestCatalogDefaults(t *testing.T) {
	words := en("A")
	c, err := scope.NewCatalog(
		scope.Action{Name: "a", Words: words},
		scope.Action{Name: "b", Words: en("B"), Risk: scope.Low, Cost: scope.Free},
		scope.Action{Name: "c", Words: en("C"), Risk: scope.Medium, Cost: 5},
	)
	require.NoError(t, err)
	words["en"] = "changed later"
	require.Equal(t, "A", c.Words("a", "en"), "a copy was taken")
	for name, want := range map[string]struct {
		risk       scope.Risk
		cost, uses int
	}{"a": {scope.High, 1, 1}, "b": {scope.Low, scope.Free, 0}, "c": {scope.Medium, 5, 5}} {
		a, ok := c.Lookup(name)
		require.True(t, ok)
		require.Equal(t, want.risk, a.Risk)
		require.Equal(t, want.cost, a.Cost)
		uses, ok := c.Cost(name)
		require.True(t, ok)
		require.Equal(t, want.uses, uses)
	}
	_, ok := c.Cost("d")
	require.False(t, ok)

	none, err := scope.NewCatalog()
	require.NoError(t, err)
	require.Empty(t, none.Names())
	var zero scope.Catalog
	require.Empty(t, zero.Names())
	_, ok = zero.Lookup("a")
	require.False(t, ok)
	require.Equal(t, "a", zero.Words("a", "en"))
}

func TestNewCatalogReportsAllFaults(t *testing.T) {
	c, err := scope.NewCatalog(
		scope.Action{Name: "Bad", Words: en("x")},
		scope.Action{Name: "no.words"},
		scope.Action{Name: "twice", Words: en("x")},
		scope.Action{Name: "twice", Words: en("x")},
		scope.Action{Name: "risk", Words: en("x"), Risk: 4},
		scope.Action{Name: "risk2", Words: en("x"), Risk: -1},
		scope.Action{Name: "cost", Words: en("x"), Cost: -2},
		scope.Action{Name: "blank", Words: en(" \t")},
		scope.Action{Name: "lines", Words: en("a\nb")},
		scope.Action{Name: "utf8", Words: en("a\xff")},
		scope.Action{Name: "long", Words: en(strings.Repeat("x", 257))},
		scope.Action{Name: "tags", Words: map[string]string{"en": "x", "": "x", "e": "x", "zh_CN": "x", "zh-": "x", "EN": "y", "toolonglang": "x"}},
		scope.Action{Name: "only.zh", Words: map[string]string{"zh": "x"}},
	)
	require.Nil(t, c)
	require.ErrorIs(t, err, scope.ErrSyntax)
	for _, says := range []string{
		`action 0: scope: invalid syntax: action "Bad"`,
		`action 1 (no.words): words: "en" is missing`,
		"action 3 (twice): the name occurs twice",
		"action 4 (risk): unknown risk 4",
		"action 5 (risk2): unknown risk -1",
		"action 6 (cost): cost -2 is below Free",
		`action 7 (blank): words: those in "en" are empty`,
		`action 8 (lines): words: those in "en" are not one line of UTF-8`,
		`action 9 (utf8): words: those in "en" are not one line of UTF-8`,
		`action 10 (long): words: those in "en" have 257 bytes, over the limit of 256`,
		`words: "" is not a language tag`,
		`words: "e" is not a language tag`,
		`words: "zh_CN" is not a language tag`,
		`words: "zh-" is not a language tag`,
		`words: "toolonglang" is not a language tag`,
		`words: language en occurs twice`,
		`action 12 (only.zh): words: "en" is missing`,
	} {
		require.ErrorContains(t, err, says)
	}
	require.NotContains(t, err.Error(), "action 2 ")
}

func TestCatalogWords(t *testing.T) {
	c, err := scope.NewCatalog(
		scope.Action{Name: "all", Words: map[string]string{"en": "en", "zh": "zh", "zh-Hant": "zh-Hant", "en-GB": "en-GB"}},
		scope.Action{Name: "english", Words: en("en")},
	)
	require.NoError(t, err)
	for _, w := range []struct{ name, lang, want string }{
		{"all", "zh", "zh"},
		{"all", "zh-CN", "zh"},
		{"all", "ZH-cn", "zh"},
		{"all", "zh-Hant", "zh-Hant"},
		{"all", "zh-hant-TW", "zh-Hant"},
		{"all", "zh-Hans-CN", "zh"},
		{"all", "en-GB", "en-GB"},
		{"all", "en-US", "en"},
		{"all", "de-AT", "en"},
		{"all", "zhx", "en"},
		{"all", "", "en"},
		{"all", "-", "en"},
		{"all", "zh-", "zh"},
		{"all", "zh-" + strings.Repeat("a-", 1<<20), "en"},
		{"all", "\xff", "en"},
		{"english", "zh-CN", "en"},
		{"unknown.action", "zh", "unknown.action"},
	} {
		require.Equal(t, w.want, c.Words(w.name, w.lang), "%s, %.20s", w.name, w.lang)
	}
}

func TestRisk(t *testing.T) {
	require.Less(t, scope.Low, scope.Medium)
	require.Less(t, scope.Medium, scope.High)
	require.Equal(t, "low medium high unknown unknown", strings.Join([]string{scope.Low.String(), scope.Medium.String(),
		scope.High.String(), scope.Risk(0).String(), scope.Risk(9).String()}, " "))
}
