package scope_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

const upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

func TestPatternGrammar(t *testing.T) {
	eachByte(t, "all", "?", "*", parsePattern)
	eachByte(t, "kind, first", "?roup:*", lower, parsePattern)
	eachByte(t, "kind, last", "grou?:*", word, parsePattern)
	eachByte(t, "id, only", "group:?", unreserved+"*", parsePattern)
	eachByte(t, "id, rest", "group:4?", unreserved, parsePattern)
	eachByte(t, "after a star", "group:*?", "", parsePattern)
	eachByte(t, "separator", "group:*?thread:*", "/", parsePattern)
	eachByte(t, "name, first", "group:{?roup}/write", lower+upper+"_", parsePattern)
	eachByte(t, "name, rest", "group:{g?oup}/write", lower+upper+digits+"_", parsePattern)
	eachByte(t, "name, only", "group:{?}/write", lower+upper+"_", parsePattern)
	eachByte(t, "brace, opening", "group:?group}/write", "{", parsePattern)
	eachByte(t, "brace, closing", "group:{group?/write", "}", parsePattern)
	eachByte(t, "before a brace", "group:?{group}/write", "", parsePattern)
	eachByte(t, "after a brace", "group:{group}?/write", "", parsePattern)
	eachByte(t, "separator of the action", "group:{group}?write", "/", parsePattern)
	eachByte(t, "action, first", "group:{group}/?rite", lower, parsePattern)
	eachByte(t, "action, rest", "group:{group}/w?ite", word+".", parsePattern)

	for name, c := range map[string]struct{ text, says string }{
		"empty":               {"", "offset 0: a segment kind:id is missing"},
		"two stars":           {"**", "the \":\" is missing"},
		"star and action":     {"group:*/message.write", "offset 6: \"*\" makes no scope: use {name} before an action"},
		"any and action":      {"*/message.write", "the \":\" is missing"},
		"star below any":      {"*/thread:7", "the \":\" is missing"},
		"star for a kind":     {"*:42", "offset 0: a kind begins with a-z, not with '*'"},
		"part of an id":       {"group:4*", "offset 7: an id has '*' as %2A"},
		"slash after":         {"group:*/", "offset 6: \"*\" makes no scope"},
		"no action":           {"group:{group}", "offset 6: {name} matches no domain: use \"*\", or put an action at the end"},
		"name twice":          {"group:{id}/thread:{id}/write", "offset 18: the name id occurs twice"},
		"no name":             {"group:{}/write", "offset 7: the name is empty"},
		"name of 65":          {"group:{" + strings.Repeat("n", 65) + "}/write", "the name has 65 bytes, over the limit of 64"},
		"open":                {"group:{group/write", "the \"}\" is missing"},
		"Go's rest of a path": {"group:{group...}/write", "not '.'"},
		"9 segments":          {strings.Repeat("g:*/", 8) + "g:*", "more than 8 segments"},
		"1025 bytes":          {strings.Repeat("g:"+strings.Repeat("a", 253)+"/", 4) + "a", "1025 bytes, over the limit of 1024"},
		"a set":               {"group:1/a group:2/a", "offset 9: a kind has a-z, 0-9, \"_\" and \"-\", not byte 0x20"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := scope.ParsePattern(c.text)
			wantSyntax(t, err)
			require.ErrorContains(t, err, c.says)
			require.True(t, p.IsZero())
		})
	}
}

func TestPatternMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, domain string
		want            bool
	}{
		{"*", "group:42", true},
		{"*", "group:42/thread:7", true},
		{"group:*", "group:42", true},
		{"group:*", "group:42/thread:7", true},
		{"group:*", "group:a%2Fb", true},
		{"group:*", "channel:42", false},
		{"group:*", "groups:42", false},
		{"groups:*", "group:42", false},
		{"group:*", "space:1/group:42", false},
		{"group:42", "group:42", true},
		{"group:42", "group:42/thread:7", true},
		{"group:42", "group:4", false},
		{"group:4", "group:42", false},
		{"group:%34%32", "group:42", true},
		{"group:42/thread:*", "group:42/thread:7/message:1", true},
		{"group:42/thread:*", "group:42", false},
		{"group:42/thread:*", "group:43/thread:7", false},
		{"group:*/thread:7", "group:42/thread:7", true},
		{"group:*/thread:7", "group:42/thread:77", false},
		{"group:*/thread:*", "group:42/thread:7", true},
		{"group:*/thread:*", "group:42/poll:7", false},
		{"group:%2A", "group:42", false},
		{"group:%2A", "group:%2A", true},
	} {
		err := mustPattern(t, c.pattern).Match(scope.MustDomain(c.domain))
		if c.want {
			require.NoError(t, err, "%s, %s", c.pattern, c.domain)
			continue
		}
		require.ErrorIs(t, err, scope.ErrWrongDomain, "%s, %s", c.pattern, c.domain)
	}

	some := scope.MustDomain("group:42")
	for _, c := range []struct {
		pattern scope.Pattern
		domain  scope.Domain
		says    string
	}{
		{mustPattern(t, "*"), scope.Domain{}, "there is no domain"},
		{scope.Pattern{}, some, "the pattern is empty"},
		{mustPattern(t, "group:{group}/write"), some, "matches no domain"},
		{mustPattern(t, "group:42/write"), some, "matches no domain"},
		{mustPattern(t, "feed:*"), some, "kind"},
		{mustPattern(t, "group:43"), some, "id"},
		{mustPattern(t, "group:42/thread:*"), some, "above"},
	} {
		err := c.pattern.Match(c.domain)
		require.ErrorIs(t, err, scope.ErrWrongDomain)
		require.ErrorContains(t, err, c.says)
	}
}

func values(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestPatternExpand(t *testing.T) {
	for _, c := range []struct {
		pattern string
		values  []string
		want    string
	}{
		{"group:{group}/message.write", []string{"group", "42"}, "group:42/message.write"},
		{"group:{group}/message.write", []string{"group", "a/b"}, "group:a%2Fb/message.write"},
		{"group:{group}/message.write", []string{"group", "群"}, "group:%E7%BE%A4/message.write"},
		{"group:{group}/message.write", []string{"group", "%41"}, "group:%2541/message.write"},
		{"group:{group}/message.write", []string{"group", "{group}"}, "group:%7Bgroup%7D/message.write"},
		{"group:{group}/message.write", []string{"group", "*"}, "group:%2A/message.write"},
		{"group:{group}/message.write", []string{"group", "42/message.read"}, "group:42%2Fmessage.read/message.write"},
		{"group:{g}/thread:{t}/message.write", []string{"t", "7", "g", "42"}, "group:42/thread:7/message.write"},
		{"group:{g}/topic:a%2fb/thread:{t}/x", []string{"t", "7", "g", "42"}, "group:42/topic:a%2Fb/thread:7/x"},
		{"feed:main/message.write", nil, "feed:main/message.write"},
		{"feed:%6dain/message.write", nil, "feed:main/message.write"},
	} {
		s, err := mustPattern(t, c.pattern).Expand(values(c.values...))
		require.NoError(t, err, c.pattern)
		require.Equal(t, scope.MustParse(c.want), s)
		require.Equal(t, c.want, s.String())
	}

	p := mustPattern(t, "group:{group}/thread:{thread}/message.write")
	for name, c := range map[string]struct {
		pattern scope.Pattern
		values  []string
		says    string
		sender  bool // whose fault it is
	}{
		"missing":     {p, []string{"group", "42"}, "no value for {thread}", false},
		"empty":       {p, []string{"group", "", "thread", "7"}, "no value for {group}", false},
		"no names":    {p, nil, "no value for {group}", false},
		"zero":        {scope.Pattern{}, nil, "no action", false},
		"for domains": {mustPattern(t, "group:*"), nil, "no action", false},
		"257 bytes":   {p, []string{"group", "42", "thread", strings.Repeat("a", 257)}, "value of {thread}", true},
		"1025 bytes":  {p, []string{"group", strings.Repeat("/", 256), "thread", strings.Repeat("/", 100)}, "over the limit of 1024", true},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := c.pattern.Expand(values(c.values...))
			require.ErrorContains(t, err, c.says)
			require.Equal(t, c.sender, errors.Is(err, scope.ErrSyntax))
			require.True(t, s.IsZero())
			boundedError(t, err)
		})
	}

	for i := range 256 {
		v := string([]byte{byte(i)})
		s, err := mustPattern(t, "group:{group}/message.write").Expand(values("group", v))
		require.NoError(t, err)
		require.Equal(t, v, s.Domain().ID())
		require.Equal(t, "message.write", s.Action())
		require.Equal(t, s, scope.MustParse(s.String()))
	}
}

func TestPatternParts(t *testing.T) {
	p := mustPattern(t, "group:{group}/thread:{thread_2}/message.write")
	require.Equal(t, []string{"group", "thread_2"}, p.Names())
	require.Equal(t, "message.write", p.Action())
	for _, text := range []string{"*", "group:*", "group:42"} {
		require.Empty(t, mustPattern(t, text).Names())
		require.Empty(t, mustPattern(t, text).Action())
	}
	require.Equal(t, "write", mustPattern(t, "group:42/write").Action())
	require.True(t, mustPattern(t, "group:%61/write") == mustPattern(t, "group:a/write"), "comparable")
	require.True(t, mustPattern(t, "group:%2a") == mustPattern(t, "group:%2A"), "comparable")

	var zero scope.Pattern
	require.True(t, zero.IsZero())
	require.Empty(t, zero.Names())
	require.Empty(t, zero.Action()+zero.String())
}

func TestPatternText(t *testing.T) {
	type doc struct {
		In scope.Pattern `json:"in,omitzero"`
	}
	for _, text := range []string{`{"in":"group:*"}`, `{"in":"group:{group}/message.write"}`, `{}`} {
		var in doc
		require.NoError(t, json.Unmarshal([]byte(text), &in))
		out, err := json.Marshal(in)
		require.NoError(t, err)
		require.JSONEq(t, text, string(out))
	}
	p := mustPattern(t, "group:{group}/write")
	wantSyntax(t, p.UnmarshalText([]byte("group")))
	require.Equal(t, mustPattern(t, "group:{group}/write"), p, "as it was")
	require.NoError(t, p.UnmarshalText(nil))
	require.True(t, p.IsZero())
}
