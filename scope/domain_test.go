package scope_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

func TestDomainGrammar(t *testing.T) {
	eachByte(t, "kind, first", "?roup:42", lower, parseDomain)
	eachByte(t, "kind, rest", "g?oup:42", word, parseDomain)
	eachByte(t, "kind, last", "grou?:42", word, parseDomain)
	eachByte(t, "kind, first, of the second segment", "group:42/?hread:7", lower, parseDomain)
	eachByte(t, "id, first", "group:?2", unreserved, parseDomain)
	eachByte(t, "id, rest", "group:4?2", unreserved, parseDomain)
	eachByte(t, "id, last", "group:4?", unreserved, parseDomain)
	eachByte(t, "id, only", "group:?", unreserved, parseDomain)
	eachByte(t, "id, only, of the first segment", "group:?/thread:7", unreserved, parseDomain)
	eachByte(t, "escape, first digit", "group:%?0", hexDigits, parseDomain)
	eachByte(t, "escape, second digit", "group:%0?", hexDigits, parseDomain)
	eachByte(t, "separator in a segment", "group?42", ":", parseDomain)
	eachByte(t, "separator of segments", "group:42?thread:7", "/", parseDomain)
	eachByte(t, "before", "?group:42", lower, parseDomain)
	eachByte(t, "after", "group:42?", unreserved, parseDomain)
}

func TestDomainEscapes(t *testing.T) {
	for i := range 256 {
		c := byte(i)
		raw := string([]byte{c})
		upper, lowerCase := fmt.Sprintf("group:%%%02X", c), fmt.Sprintf("group:%%%02x", c)
		want := upper
		if strings.Contains(unreserved, raw) {
			want = "group:" + raw
		}
		for _, text := range []string{upper, lowerCase} {
			d, err := scope.ParseDomain(text)
			require.NoError(t, err)
			require.Equal(t, want, d.String())
			require.Equal(t, raw, d.ID(), "decoded once")
		}
		child, err := scope.Domain{}.Child("group", raw)
		require.NoError(t, err)
		require.Equal(t, scope.MustDomain(upper), child)
		// Other software decodes it alike.
		decoded, err := url.PathUnescape(strings.TrimPrefix(child.String(), "group:"))
		require.NoError(t, err)
		require.Equal(t, raw, decoded)
	}
	require.Equal(t, "%41", scope.MustDomain("group:%2541").ID(), "decoded once, not twice")
	require.Equal(t, "group:a%2Fb/thread:A%25", scope.MustDomain("group:%61%2fb/thread:%41%25").String())
}

func TestDomainLimits(t *testing.T) {
	long := func(n int) string { return strings.Repeat("a", n) }
	deep := strings.TrimSuffix(strings.Repeat("g:1/", 8), "/")
	wide := func(n int) string { // n bytes in 5 segments
		text := strings.Repeat("g:"+long(252)+"/", 4)
		return text + "g:" + long(n-len(text)-2)
	}
	for name, text := range map[string]string{
		"kind of 32":      long(32) + ":1",
		"id of 256":       "g:" + long(256),
		"id of 256 as %":  "g:" + strings.Repeat("%00", 256),
		"8 segments":      deep,
		"1024 bytes":      wide(1024),
		"digits and dots": "g:..",
	} {
		t.Run(name, func(t *testing.T) {
			d, err := scope.ParseDomain(text)
			require.NoError(t, err)
			require.Equal(t, text, d.String())
			require.True(t, goodDomain(text), "the second grammar agrees")
		})
	}
	for name, c := range map[string]struct{ text, says string }{
		"empty":               {"", "offset 0: a segment kind:id is missing"},
		"kind of 33":          {long(33) + ":1", "offset 32: the kind has 33 bytes, over the limit of 32"},
		"no kind":             {":1", "offset 0: the kind is empty"},
		"upper case":          {"g:1/Thread:7", "offset 4: a kind begins with a-z, not with 'T'"},
		"no id":               {"group:", "offset 6: the id is empty"},
		"no colon":            {"group:42/thread", "offset 15: a segment is kind:id, and the \":\" is missing"},
		"two colons":          {"g:1:2", "offset 3: an id has ':' as %3A"},
		"id of 257":           {"g:" + long(257), "offset 2: the id has 257 bytes, over the limit of 256"},
		"9 segments":          {deep + "/g:1", "offset 32: more than 8 segments"},
		"1025 bytes":          {wide(1025), "offset 1024: 1025 bytes, over the limit of 1024"},
		"slash before":        {"/g:1", "offset 0: a segment kind:id is missing"},
		"slash after":         {"g:1/", "offset 4: a segment kind:id is missing"},
		"two slashes":         {"g:1//g:2", "offset 4: a segment kind:id is missing"},
		"plain UTF-8":         {"g:群", "offset 2: an id has byte 0xE7 as %E7"},
		"half an escape":      {"g:a%4", "offset 3: \"%\" wants two hexadecimal digits"},
		"escape over the end": {"g:%4/t:1", "offset 2: \"%\" wants two hexadecimal digits"},
		"escape in a kind":    {"%67:1", "offset 0: a kind begins with a-z, not with '%'"},
		"a scope":             {"group:42/message.write", "offset 22: a segment is kind:id"},
		"NUL":                 {"g:\x00", "offset 2: an id has byte 0x00 as %00"},
		"line feed":           {"g:1\n", "offset 3: an id has byte 0x0A as %0A"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := scope.ParseDomain(c.text)
			wantSyntax(t, err)
			require.ErrorContains(t, err, c.says)
			require.False(t, goodDomain(c.text), "the second grammar agrees")
		})
	}
}

func TestErrorsQuoteLittle(t *testing.T) {
	_, err := scope.ParseDomain(strings.Repeat("g:1/", 3) + strings.Repeat("x", 100) + "!" + strings.Repeat("y", 1<<20))
	wantSyntax(t, err)
	_, err = scope.ParseDomain("group:" + strings.Repeat("a", 100) + "!" + strings.Repeat("b", 100))
	require.EqualError(t, err, `scope: invalid syntax: domain …"`+strings.Repeat("a", 32)+"!"+strings.Repeat("b", 31)+
		`"…: at offset 106: an id has '!' as %21`)
	_, err = scope.ParseDomain("group:\u202e\x1b[31m")
	require.EqualError(t, err, `scope: invalid syntax: domain "group:\u202e\x1b[31m": at offset 6: an id has byte 0xE2 as %E2`)
}

func TestDomainParts(t *testing.T) {
	d := scope.MustDomain("group:42/thread:a%2Fb")
	require.Equal(t, "thread", d.Kind())
	require.Equal(t, "a/b", d.ID())
	require.Equal(t, scope.MustDomain("group:42"), d.Parent())
	require.Equal(t, scope.MustDomain("group:42"), d.Root())
	require.True(t, d.Root().Parent().IsZero())
	require.Equal(t, d.Root(), d.Root().Root())

	nested := scope.MustDomain("space:1/group:2/group:3/thread:4")
	near, ok := nested.Ancestor("group")
	require.True(t, ok)
	require.Equal(t, "space:1/group:2/group:3", near.String(), "the nearest")
	self, ok := nested.Ancestor("thread")
	require.True(t, ok)
	require.Equal(t, nested, self)
	for _, kind := range []string{"feed", "", "grou", "group:3"} {
		none, ok := nested.Ancestor(kind)
		require.False(t, ok, kind)
		require.True(t, none.IsZero())
	}
}

func TestDomainCovers(t *testing.T) {
	for _, c := range []struct {
		above, below string
		want         bool
	}{
		{"group:42", "group:42", true},
		{"group:42", "group:42/thread:7", true},
		{"group:42", "group:42/thread:7/message:1", true},
		{"group:42", "group:%34%32/thread:7", true},
		{"group:4", "group:42", false},
		{"group:42", "group:4", false},
		{"group:42/thread:7", "group:42", false},
		{"group:42", "groups:42", false},
		{"group:42", "channel:42", false},
		{"thread:7", "group:42/thread:7", false},
		{"group:a", "group:A", false},
		{"group:a", "group:a%2Fthread", false},
		{"group:42", "group:42-x", false},
	} {
		require.Equal(t, c.want, scope.MustDomain(c.above).Covers(scope.MustDomain(c.below)), "%s, %s", c.above, c.below)
	}
}

func TestDomainZero(t *testing.T) {
	var zero scope.Domain
	some := scope.MustDomain("group:42")
	require.True(t, zero.IsZero())
	require.False(t, some.IsZero())
	require.Empty(t, zero.String()+zero.Kind()+zero.ID())
	require.Equal(t, zero, zero.Parent())
	require.Equal(t, zero, zero.Root())
	require.False(t, zero.Covers(zero))
	require.False(t, zero.Covers(some))
	require.False(t, some.Covers(zero))
	_, ok := zero.Ancestor("")
	require.False(t, ok)
}

func TestDomainChild(t *testing.T) {
	root, err := scope.Domain{}.Child("group", "群/1")
	require.NoError(t, err)
	require.Equal(t, "group:%E7%BE%A4%2F1", root.String())
	child, err := root.Child("thread", "7")
	require.NoError(t, err)
	require.Equal(t, "group:%E7%BE%A4%2F1/thread:7", child.String())
	require.Equal(t, root, child.Parent())

	eachByte(t, "kind of a child", "t?", word, func(kind string) error { _, err := root.Child(kind, "7"); return err })
	full := scope.MustDomain(strings.TrimSuffix(strings.Repeat("g:1/", 8), "/"))
	large := scope.MustDomain(strings.TrimSuffix(strings.Repeat("g:"+strings.Repeat("a", 250)+"/", 4), "/"))
	for name, c := range map[string]struct {
		of             scope.Domain
		kind, id, says string
	}{
		"no kind":          {root, "", "7", "the kind is empty"},
		"kind with an id":  {root, "thread:7", "7", "not ':'"},
		"kind of 33":       {root, strings.Repeat("k", 33), "7", "limit of 32"},
		"no id":            {root, "thread", "", "the id is empty"},
		"no id for a root": {scope.Domain{}, "thread", "", "the id is empty"},
		"id of 257":        {root, "thread", strings.Repeat("i", 257), "limit of 256"},
		"9 segments":       {full, "thread", "7", "8 segments are the limit"},
		"1025 bytes":       {large, "t", strings.Repeat("i", 11), "1025 bytes, over the limit of 1024"},
		"encoded too long": {large, "t", "////", "1026 bytes, over the limit of 1024"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := c.of.Child(c.kind, c.id)
			wantSyntax(t, err)
			require.ErrorContains(t, err, c.says)
			require.True(t, d.IsZero())
		})
	}
	_, err = large.Child("t", strings.Repeat("i", 10))
	require.NoError(t, err, "1024 bytes")
}

func TestDomainText(t *testing.T) {
	type doc struct {
		Domain scope.Domain         `json:"domain,omitzero"`
		By     map[scope.Domain]int `json:"by,omitempty"`
	}
	in := doc{Domain: scope.MustDomain("group:42"), By: map[scope.Domain]int{scope.MustDomain("group:1"): 1}}
	text, err := json.Marshal(in)
	require.NoError(t, err)
	require.JSONEq(t, `{"domain":"group:42","by":{"group:1":1}}`, string(text))
	var out doc
	require.NoError(t, json.Unmarshal(text, &out))
	require.Equal(t, in, out)

	text, err = json.Marshal(doc{})
	require.NoError(t, err)
	require.JSONEq(t, `{}`, string(text))

	d := scope.MustDomain("group:42")
	wantSyntax(t, d.UnmarshalText([]byte("group")))
	require.Equal(t, "group:42", d.String(), "as it was")
	require.NoError(t, d.UnmarshalText(nil))
	require.True(t, d.IsZero())

	// The value does not share the caller's bytes.
	buf := []byte("group:42")
	require.NoError(t, d.UnmarshalText(buf))
	buf[6] = '9'
	require.Equal(t, "group:42", d.String())
}

func TestMustPanics(t *testing.T) {
	require.Panics(t, func() { scope.MustDomain("group") })
	require.Panics(t, func() { scope.MustParse("group:42") })
}
