package scope_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

func TestSetGrammar(t *testing.T) {
	eachByte(t, "separator", "group:1/a?group:2/b", " ", func(text string) error {
		set, err := scope.ParseSet(text)
		if err == nil && len(slices.Collect(set.All())) != 2 {
			return fmt.Errorf("%w: one longer scope", scope.ErrSyntax)
		}
		return err
	})
	parseSet := func(text string) error { _, err := scope.ParseSet(text); return err }
	eachByte(t, "before", "?group:1/a", lower, parseSet)
	eachByte(t, "after", "group:1/a group:2/b?", word, parseSet)
	eachByte(t, "only", "?", "", parseSet)

	for name, c := range map[string]struct{ text, says string }{
		"a space":        {" ", "offset 0: scope 1 is empty"},
		"space before":   {" g:1/a", "offset 0: scope 1 is empty"},
		"space after":    {"g:1/a ", "offset 6: scope 2 is empty"},
		"two spaces":     {"g:1/a  g:2/b", "offset 6: scope 2 is empty: one space stands between two scopes"},
		"second is bad":  {"g:1/a G:2/b", "offset 6: a kind begins with a-z, not with 'G'"},
		"plain OAuth":    {"g:1/a openid", "offset 6: a scope is domain/action, and the domain is missing"},
		"129 scopes":     {strings.TrimSuffix(strings.Repeat("g:1/a ", 129), " "), "offset 768: more than 128 scopes"},
		"a long scope":   {"g:1/a g:" + strings.Repeat("a", 2000) + "/a", "offset 1030: 2004 bytes, over the limit of 1024"},
		"a line feed":    {"g:1/a\ng:2/b", "offset 5: a kind has a-z, 0-9, \"_\" and \"-\", not byte 0x0A"},
		"a domain alone": {"g:1", "and the action is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := scope.ParseSet(c.text)
			wantSyntax(t, err)
			require.ErrorContains(t, err, c.says)
			require.True(t, set.IsZero())
		})
	}
}

func TestSetIsCanonical(t *testing.T) {
	const want = "group:1/a group:1/b group:2/a"
	for _, text := range []string{
		want,
		"group:2/a group:1/b group:1/a",
		"group:1/a group:1/a group:1/b group:2/a group:2/a",
		"group:%31/a group:1/b group:%32/a",
		"group:1/b group:1/a group:2/a",
		"group:1/a group:2/a group:1/b",
		"group:1/a group:1/b group:2/a group:%31/a",
	} {
		set := mustSet(t, text)
		require.Equal(t, want, set.String(), text)
		require.True(t, set == mustSet(t, want))
	}
	a, b, c := scope.MustParse("group:1/a"), scope.MustParse("group:1/b"), scope.MustParse("group:2/a")
	require.Equal(t, mustSet(t, want), scope.NewSet(c, a, scope.Scope{}, b, a))
	require.Equal(t, []scope.Scope{a, b, c}, slices.Collect(scope.NewSet(c, a, b).All()))
	for s := range scope.NewSet(a, b, c).All() {
		require.Equal(t, a, s)
		break // stopping early is fine
	}
	require.True(t, scope.NewSet().IsZero())
	require.True(t, scope.NewSet(scope.Scope{}).IsZero())
	require.Equal(t, "group:1/a group:1/thread:1/a", mustSet(t, "group:1/thread:1/a group:1/a").String(),
		"what is covered stays: a set is what was said")
}

func TestSetAllows(t *testing.T) {
	set := mustSet(t, "group:42/message.write group:42/member.read group:43/thread:7/message.read")
	for _, c := range []struct {
		want string
		is   error
	}{
		{"group:42/message.write", nil},
		{"group:42/thread:1/message.write", nil},
		{"group:42/member.read", nil},
		{"group:43/thread:7/message.read", nil},
		{"group:42/message.read", scope.ErrWrongAction},
		{"group:42/thread:1/message.read", scope.ErrWrongAction},
		{"group:42/write", scope.ErrWrongAction},
		{"group:43/thread:7/message.write", scope.ErrWrongAction},
		{"group:43/message.read", scope.ErrWrongDomain},
		{"group:4/message.write", scope.ErrWrongDomain},
		{"group:422/message.write", scope.ErrWrongDomain},
		{"channel:42/message.write", scope.ErrWrongDomain},
		{"group:44/file.read", scope.ErrWrongDomain},
	} {
		err := set.Allows(scope.MustParse(c.want))
		if c.is == nil {
			require.NoError(t, err, c.want)
			continue
		}
		require.ErrorIs(t, err, c.is, c.want)
		for _, other := range []error{scope.ErrWrongAction, scope.ErrWrongDomain, scope.ErrWiden, scope.ErrSyntax} {
			require.Equal(t, other == c.is, errors.Is(err, other), "one reason only")
		}
		require.ErrorContains(t, err, c.want)
		boundedError(t, err)
	}
	require.EqualError(t, mustSet(t, "g:1/a").Allows(scope.MustParse("g:2/a")),
		`scope: wrong domain: "g:2/a" is not within "g:1/a"`)
	require.EqualError(t, set.Allows(scope.Scope{}), "scope: wrong domain: no scope was asked for")
	require.EqualError(t, scope.Set{}.Allows(scope.MustParse("g:2/a")),
		`scope: wrong domain: "g:2/a" is not in the empty set`)
	require.ErrorIs(t, scope.Set{}.Allows(scope.Scope{}), scope.ErrWrongDomain)
}

func TestSetNarrow(t *testing.T) {
	set := mustSet(t, "group:42/message.write group:42/member.read")
	for _, text := range []string{
		"", "group:42/member.read", "group:42/thread:7/message.write", "group:42/message.write group:42/member.read",
		"group:42/thread:7/message.write group:42/thread:8/message.write group:42/message.write",
	} {
		got, err := set.Narrow(mustSet(t, text))
		require.NoError(t, err, text)
		require.Equal(t, mustSet(t, text), got)
	}
	for _, text := range []string{
		"group:42/message.read", "group:43/message.write", "group:42/message.write group:42/message.read",
		"group:4/member.read",
	} {
		got, err := set.Narrow(mustSet(t, text))
		require.ErrorIs(t, err, scope.ErrWiden, text)
		require.True(t, got.IsZero(), "no part of it")
		boundedError(t, err)
	}
	_, err := mustSet(t, "g:1/a").Narrow(mustSet(t, "g:1/a g:1/b"))
	require.EqualError(t, err, `scope: asks for more than was granted: "g:1/b" is not within "g:1/a"`)
	_, err = scope.Set{}.Narrow(set)
	require.ErrorIs(t, err, scope.ErrWiden)
	got, err := scope.Set{}.Narrow(scope.Set{})
	require.NoError(t, err)
	require.True(t, got.IsZero())
}

func TestSetText(t *testing.T) {
	type doc struct {
		Scope scope.Set `json:"scope,omitzero"`
	}
	text, err := json.Marshal(doc{mustSet(t, "g:1/b g:1/a")})
	require.NoError(t, err)
	require.JSONEq(t, `{"scope":"g:1/a g:1/b"}`, string(text))
	var out doc
	require.NoError(t, json.Unmarshal(text, &out))
	require.Equal(t, mustSet(t, "g:1/a g:1/b"), out.Scope)
	text, err = json.Marshal(doc{})
	require.NoError(t, err)
	require.JSONEq(t, `{}`, string(text))

	set := out.Scope
	wantSyntax(t, set.UnmarshalText([]byte("g:1/a ")))
	require.Equal(t, out.Scope, set, "as it was")
	require.NoError(t, set.UnmarshalText(nil))
	require.True(t, set.IsZero())

	var many []scope.Scope
	for i := range 129 {
		many = append(many, scope.MustParse(fmt.Sprintf("g:%d/a", i)))
	}
	text, err = scope.NewSet(many[:128]...).MarshalText()
	require.NoError(t, err)
	require.NoError(t, set.UnmarshalText(text))
	_, err = scope.NewSet(many...).MarshalText()
	wantSyntax(t, err)
}
