package scope_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

func TestScopeGrammar(t *testing.T) {
	eachByte(t, "action, first", "group:42/?essage.write", lower, parseScope)
	eachByte(t, "action, rest", "group:42/m?ssage.write", word+".", parseScope)
	eachByte(t, "action, second word, first", "group:42/message.?rite", lower, parseScope)
	eachByte(t, "action, second word, rest", "group:42/message.w?ite", word+".", parseScope)
	eachByte(t, "action, last", "group:42/message.writ?", word, parseScope)
	eachByte(t, "action, only", "group:42/?", lower, parseScope)
	eachByte(t, "separator of domain and action", "group:42?message.write", "/", parseScope)
	eachByte(t, "kind, first", "?roup:42/message.write", lower, parseScope)
	eachByte(t, "id", "group:?/message.write", unreserved, parseScope)
	eachByte(t, "after", "group:42/message.write?", word, parseScope)

	eachByte(t, "CheckAction, first", "?essage.write", lower, scope.CheckAction)
	eachByte(t, "CheckAction, rest", "m?ssage.write", word+".", scope.CheckAction)
	eachByte(t, "CheckAction, after a dot", "message.?rite", lower, scope.CheckAction)
	eachByte(t, "CheckAction, last", "message.writ?", word, scope.CheckAction)
}

func TestScopeRefusals(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"empty":           {"", "offset 0: a scope is domain/action, and the domain is missing"},
		"plain OAuth":     {"openid", "and the domain is missing"},
		"only an action":  {"/message.write", "and the domain is missing"},
		"only a domain":   {"group:42", "offset 8: a scope is domain/action, and the action is missing"},
		"only a path":     {"group:42/thread:7", "and the action is missing"},
		"a bad domain":    {"Group:42", "offset 0: a kind begins with a-z, not with 'G'"},
		"no action":       {"group:42/", "offset 9: the action is empty"},
		"two actions":     {"group:42/message.read/message.write", "offset 21: a segment is kind:id"},
		"action of 65":    {"group:42/" + strings.Repeat("a", 65), "offset 73: the action has 65 bytes, over the limit of 64"},
		"dots":            {"group:42/message..write", "offset 17: a word of an action begins with a-z, not with '.'"},
		"dot at the end":  {"group:42/message.", "offset 17: an action does not end with \".\""},
		"an escape":       {"group:42/message%2Ewrite", "offset 16: an action has a-z, 0-9, \"_\", \"-\" and \".\", not '%'"},
		"a pattern":       {"group:*/message.write", "offset 6: an id has '*' as %2A"},
		"two scopes":      {"group:42/message.read group:42/message.write", "offset 16: a kind has"},
		"1025 bytes":      {strings.Repeat("g:"+strings.Repeat("a", 253)+"/", 4) + "a", "1025 bytes, over the limit of 1024"},
		"a million bytes": {"group:" + strings.Repeat("a", 1<<20) + "/message.write", "over the limit of 1024"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := scope.Parse(c.text)
			wantSyntax(t, err)
			require.ErrorContains(t, err, c.says)
			require.True(t, s.IsZero())
			require.False(t, goodScope(c.text), "the second grammar agrees")
		})
	}
}

func TestScopeParts(t *testing.T) {
	s := scope.MustParse("group:%342/thread:a%2fb/message.write")
	require.Equal(t, "group:42/thread:a%2Fb/message.write", s.String())
	require.Equal(t, scope.MustDomain("group:42/thread:a%2Fb"), s.Domain())
	require.Equal(t, "message.write", s.Action())
	same, err := scope.New(s.Domain(), s.Action())
	require.NoError(t, err)
	require.Equal(t, s, same)

	large := scope.MustDomain(strings.TrimSuffix(strings.Repeat("g:"+strings.Repeat("a", 252)+"/", 4), "/"))
	_, err = scope.New(large, "wri") // 1019 + 1 + 3
	require.NoError(t, err)
	for name, c := range map[string]struct {
		domain scope.Domain
		action string
	}{
		"zero domain": {scope.Domain{}, "message.write"},
		"no action":   {large, ""},
		"bad action":  {large, "Write"},
		"1025 bytes":  {large, "write"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := scope.New(c.domain, c.action)
			wantSyntax(t, err)
			require.True(t, s.IsZero())
		})
	}
}

func TestScopeCovers(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"group:42/message.write", "group:42/message.write", true},
		{"group:42/message.write", "group:42/thread:7/message.write", true},
		{"group:42/thread:7/message.write", "group:42/message.write", false},
		{"group:4/message.write", "group:42/message.write", false},
		{"group:42/message.write", "group:42/message.read", false},
		{"group:42/message", "group:42/message.write", false},
		{"group:42/write", "group:42/message.write", false},
	} {
		require.Equal(t, c.want, scope.MustParse(c.a).Covers(scope.MustParse(c.b)), "%s, %s", c.a, c.b)
	}
	var zero scope.Scope
	some := scope.MustParse("group:42/message.write")
	require.False(t, zero.Covers(zero))
	require.False(t, zero.Covers(some))
	require.False(t, some.Covers(zero))
	require.True(t, zero.IsZero())
	require.True(t, zero.Domain().IsZero())
	require.Empty(t, zero.Action()+zero.String())
}

func TestScopeIsAnOAuthToken(t *testing.T) {
	// RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
	token := regexp.MustCompile(`\A[\x21\x23-\x5B\x5D-\x7E]+\z`)
	for i := range 256 {
		d := must(scope.Domain{}.Child("group", string([]byte{byte(i)})))
		require.Regexp(t, token, must(scope.New(d, "message.write")).String())
	}
}

func TestScopeText(t *testing.T) {
	text, err := json.Marshal([]scope.Scope{scope.MustParse("group:42/message.write"), {}})
	require.NoError(t, err)
	require.JSONEq(t, `["group:42/message.write",""]`, string(text))
	var out []scope.Scope
	require.NoError(t, json.Unmarshal(text, &out))
	require.Equal(t, []scope.Scope{scope.MustParse("group:42/message.write"), {}}, out)

	s := out[0]
	wantSyntax(t, s.UnmarshalText([]byte("group:42")))
	require.Equal(t, out[0], s, "as it was")
}
