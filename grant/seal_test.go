package grant

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/scope"
)

func testKeys(t testing.TB, root string, sealing ...string) *keys {
	var list []Secret
	for _, s := range sealing {
		list = append(list, NewSecret(strings.Repeat(s, 32)))
	}
	k, err := newKeys(NewSecret(strings.Repeat(root, 32)), list)
	require.NoError(t, err)
	return k
}

var someGrant = grantID(strings.Repeat("g", name16Len-1)+"A", "bookbot")

func someToken() *sealedToken {
	return &sealedToken{secret: [32]byte{1, 2, 3}, issued: 1e15, notAfter: 2e15, versions: [2]uint64{7, 1 << 40}, uses: -1,
		aggregate: strings.Repeat("a", name16Len), grant: someGrant, here: strings.Repeat("h", name16Len),
		account: "zhang-san", app: "bookbot", domain: "group:42", actions: "member.read message.write", trigger: "t", operation: "mention", event: "m1", deeper: deriveDepth}
}

// derivedToken has all that a token may have.
func derivedToken() *sealedToken {
	t := someToken()
	t.deeper, t.key, t.delegates = 2, strings.Repeat("k", 43), "weather third"
	for i := range uint64(2) {
		t.parents += string(appendLink(nil, &link{strings.Repeat("t", 43), grantID(strings.Repeat("A", name16Len), "bookbot"), "", strings.Repeat("h", name16Len), i << 40}))
	}
	return t
}

// With more links than a use can check in one write a token does not open, nor with what is no link.
func TestSealedParents(t *testing.T) {
	k := testKeys(t, "k")
	one := string(appendLink(nil, &link{token: "t", grant: grantID(strings.Repeat("A", name16Len), "a"), here: "h", version: 1}))
	for parents, want := range map[string]bool{"": true, one: true, strings.Repeat(one, maxDeriveDepth): true, strings.Repeat(one, maxDeriveDepth+1): false,
		one[:len(one)-1]: false, one + "\x00": false, "\x01": false, string(appendLink(nil, &link{token: "t", grant: "g", here: "h"})): false} {
		s := someToken()
		s.parents, s.deeper = parents, 1
		require.Equal(t, want, k.openToken(k.sealToken(s), new(sealedToken)), "%q", parents)
	}
	s := someToken()
	s.deeper = maxDeriveDepth + 1
	require.False(t, k.openToken(k.sealToken(s), new(sealedToken)))
}

// plainToken is what sealToken seals.
func plainToken(t testing.TB, k *keys, s *sealedToken) []byte {
	plain, ok := unseal(k.token, tokenPrefix, k.sealToken(s), nil)
	require.True(t, ok)
	return plain
}

func TestSealedToken(t *testing.T) {
	t.Run("ordinary", func(t *testing.T) { testSealedToken(t, someToken) })
	t.Run("derived", func(t *testing.T) { testSealedToken(t, derivedToken) })
}

func testSealedToken(t *testing.T, someToken func() *sealedToken) {
	k := testKeys(t, "k")
	var got sealedToken
	require.True(t, k.openToken(k.sealToken(someToken()), &got))
	require.Equal(t, *someToken(), got)

	// However short the memory that is lent.
	for _, size := range []int{0, 1, 100, 1024} {
		got = sealedToken{}
		o, ok := k.openHead(k.sealToken(someToken()), &got, make([]byte, size))
		require.True(t, ok && got.setAll(&o))
		require.Equal(t, *someToken(), got)
	}
	// Sealed by us, and yet not a token of this format: never a half-read one.
	plain := plainToken(t, k, someToken())
	opens := func(plain []byte) bool {
		var got sealedToken
		return k.openToken(seal(k.token, tokenPrefix, plain), &got)
	}
	require.True(t, opens(plain))
	for n := range plain {
		require.False(t, opens(plain[:n]), "cut to %d bytes", n)
	}
	require.False(t, opens(append(slices.Clone(plain), 0)), "a byte too many")
	for v := range 256 {
		other := slices.Clone(plain)
		other[0] = byte(v)
		require.Equal(t, byte(v) == plain[0], opens(other), "format %d", v)
	}
	// Lengths that lie.
	for _, lie := range [][]byte{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, {0xff, 0xff, 0xff, 0xff, 0x0f}, {0x80}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}} {
		head := plain[:49]
		require.False(t, opens(append(slices.Clone(head), lie...)))
		require.False(t, opens(append(append(slices.Clone(head), 0, 0, 0), lie...)))
		require.False(t, opens(append(append(slices.Clone(head), 0, 0, 0, 0, 0), lie...)))
	}
}

func TestSealedCode(t *testing.T) {
	k := testKeys(t, "k")
	c := sealedCode{account: "zhang-san", grant: someGrant, secret: [32]byte{9}}
	got, ok := k.openCode(k.sealCode(c))
	require.True(t, ok)
	require.Equal(t, c, got)
	// Sealed by us, and yet not a code of this format: never a half-read one.
	plain, ok := unseal(k.code, codePrefix, k.sealCode(c), nil)
	require.True(t, ok)
	opens := func(plain []byte) bool {
		got, ok := k.openCode(seal(k.code, codePrefix, plain))
		require.True(t, ok || got == sealedCode{})
		return ok
	}
	require.True(t, opens(plain))
	for n := range plain {
		require.False(t, opens(plain[:n]), "cut to %d bytes", n)
		require.False(t, opens(make([]byte, n)), "%d zeros", n)
	}
	require.False(t, opens(append(slices.Clone(plain), 0)), "a byte too many")
	for v := range 256 {
		other := slices.Clone(plain)
		other[0] = byte(v)
		require.Equal(t, v == codeFormat, opens(other), "format %d", v)
	}
	// One purpose's key opens nothing of another's.
	for name, sealed := range map[string]string{"token": seal(k.token, codePrefix, plain), "outbox": seal(k.outbox, codePrefix, plain)} {
		_, ok := k.openCode(sealed)
		require.False(t, ok, name)
	}
	require.NotEqual(t, k.aggregate, k.pairwise)
	// No two sealings are alike, and no two secrets.
	require.NotEqual(t, k.sealCode(c), k.sealCode(c))
	require.NotEqual(t, newSecret(), newSecret())
}

// A code travels in links and forms, so its length is bounded, whatever the names.
func TestLengthOfCodes(t *testing.T) {
	k := testKeys(t, "k")
	length := func(app, account string) int {
		return len(k.sealCode(sealedCode{account: account, grant: grantID(name16(k.aggregate, "x"), app), secret: newSecret()}))
	}
	require.Equal(t, 144, length("a", "z"))
	require.Equal(t, 163, length("bookbot", "zhang-san"))
	require.Equal(t, 569, length(strings.Repeat("a", 64), strings.Repeat("z", maxID)))
}

// An ID of a grant names its app, has no dot, and there is one for each name and app.
func TestGrantIDs(t *testing.T) {
	name := name16([]byte("key"), "grant")
	for _, app := range []string{"a", "bookbot", "a.b", "..", "-", "a-b-", "_", strings.Repeat("a", 64), strings.Repeat(".", 64)} {
		id := grantID(name, app)
		require.NotContains(t, id, ".")
		require.Len(t, id, name16Len+1+len(app))
		got, ok := appOf(id)
		require.True(t, ok, app)
		require.Equal(t, app, got)
	}
	for _, app := range []string{"", "a/b", "a b", "a\x00", "用户", strings.Repeat("a", 65)} {
		_, ok := appOf(grantID(name, app))
		require.False(t, ok, app)
	}
	id := grantID(name, "book")
	for n := range id {
		if _, ok := appOf(id[:n]); ok {
			require.Greater(t, n, name16Len+1, "cut to %d bytes", n)
		}
		for c := range 256 { // each byte, in each place
			other := []byte(id)
			other[n] = byte(c)
			if app, ok := appOf(string(other)); ok {
				require.Equal(t, string(other), grantID(string(other[:name16Len]), app), "one spelling")
				require.NotContains(t, string(other), "\x00")
				require.NotContains(t, string(other), ".")
			}
		}
	}
}

func FuzzGrantID(f *testing.F) {
	for _, id := range []string{"", someGrant, someGrant + "~", someGrant[:name16Len], strings.Replace(someGrant, "-", ".", 1), strings.Repeat("a", 5000)} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if app, ok := appOf(id); ok {
			require.True(t, isApp(app))
			require.Equal(t, id, grantID(id[:name16Len], app))
			require.LessOrEqual(t, len(id), name16Len+1+64)
			require.Equal(t, -1, strings.IndexAny(id, ".\x00\r\n/ "))
		}
	})
}

func TestKeyIDs(t *testing.T) {
	k := testKeys(t, "k", "1", "2", "3")
	seen := map[[kidSize]byte]bool{}
	for _, list := range [][]sealingKey{k.code, k.token, k.outbox} {
		require.Len(t, list, 3)
		for _, key := range list {
			require.False(t, seen[key.id])
			seen[key.id] = true
		}
	}
	for i, list := range [][]sealingKey{k.code, k.token, k.outbox} {
		sealed, ok := unseal(list[1:], "", seal(list, "", []byte("x")), nil)
		require.False(t, ok, "%d: %q without the first key", i, sealed)
	}
	other := testKeys(t, "o", "1")
	require.NotEqual(t, k.code[0].id, other.code[0].id, "the root key is part of them")
}

// A name is not made of what its parts concatenate to.
func TestNamesOfParts(t *testing.T) {
	key := []byte("key")
	seen := map[string][]string{}
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"ab"}, {"a", "b"}, {"ab", ""}, {"", "ab"}, {"a", "", "b"}, {"\x01a"}, {"\x02ab"}, {strings.Repeat("a", 127)}, {strings.Repeat("a", 128)}} {
		name := name16(key, parts...)
		require.Len(t, name, name16Len)
		require.NotContains(t, name, ".")
		require.NotContains(t, seen, name, "%q", parts)
		seen[name] = parts
	}
	require.NotEqual(t, name16(key, "a"), name16([]byte("yek"), "a"))
}

func TestFingerprint(t *testing.T) {
	base := Event{ID: "1", Operation: Mention, Account: "a", App: "b", Text: "t", Target: "x", By: "y", Data: map[string]string{"k": "v"}}
	seen := map[[32]byte]bool{base.fingerprint(): true}
	for _, change := range []func(*Event){
		func(ev *Event) { ev.ID = "2" }, func(ev *Event) { ev.Operation = Command }, func(ev *Event) { ev.Account = "c" },
		func(ev *Event) { ev.App = "" }, func(ev *Event) { ev.Text, ev.Target = "tx", "" }, func(ev *Event) { ev.By, ev.Target = "", "xy" },
		func(ev *Event) { ev.Data = nil }, func(ev *Event) { ev.Data = map[string]string{"kv": ""} }, func(ev *Event) { ev.Data = map[string]string{"k": "v", "": ""} },
		func(ev *Event) { ev.Data, ev.By = map[string]string{"": ""}, "y\x01k\x01v" },
	} {
		ev := base
		change(&ev)
		require.False(t, seen[ev.fingerprint()])
		seen[ev.fingerprint()] = true
	}
	later := base
	later.At = time.Now()
	require.Equal(t, base.fingerprint(), later.fingerprint(), "the time may be that of each try")
	empty, none := base, base
	empty.Data, none.Data = map[string]string{}, nil
	require.Equal(t, empty.fingerprint(), none.fingerprint())
}

func TestAppendBase32Sorts(t *testing.T) {
	var last string
	for _, v := range []uint64{0, 1, 31, 32, 33, 1023, 1 << 40, 1<<40 + 1, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		text := string(appendBase32(nil, v, 13))
		require.Len(t, text, 13)
		require.Greater(t, text, last)
		last = text
	}
}

func TestVersionsAreBounded(t *testing.T) {
	var v versions
	require.Zero(t, v.get("x"))
	for i := range maxVersions * 2 {
		v.learn(string(appendBase32(nil, uint64(i), 13)), 1)
		if len(v.known) > maxVersions {
			t.Fatal(len(v.known))
		}
	}
	v.learn("x", 7)
	require.EqualValues(t, 7, v.get("x"))
}

func TestErrorsHaveOneReason(t *testing.T) {
	require.ErrorIs(t, errConflict, ErrInvalid)
	reasons := map[string]error{}
	for _, err := range []error{ErrInvalid, errConflict, ErrDenied, ErrLimited, ErrUnknown, ErrExpired, ErrUsedUp, ErrRevoked, errSealed, errors.New("x")} {
		if r := Reason(err); r != "" {
			require.NotContains(t, reasons, r)
			reasons[r] = err
		}
	}
	require.Len(t, reasons, 4)
}

// The JSON of an entry is made without escapes: whatever the IDs in a domain are, its text needs none.
func FuzzAppendEntry(f *testing.F) {
	for _, s := range []string{"a", "\"\\/", "\x00\x1f\x7f", "用户", "\xff\xfe", "\u2028<&>", "\xed\xa0\x80", "😀"} {
		f.Add(s, 1)
	}
	f.Fuzz(func(t *testing.T, id string, count int) {
		domain, err := scope.Domain{}.Child("group", id)
		if err != nil {
			return
		}
		want, err := scope.New(domain, "message.write")
		require.NoError(t, err)
		for _, where := range []string{"", domain.String(), want.String(), scope.NewSet(want).String()} {
			entry := Entry{What: "derived", Grant: someGrant, Scope: where, Reason: "used_up", By: "book.bot-2_x", Parent: someGrant, Count: count}
			var d entryData
			require.NoError(t, json.Unmarshal(appendEntry(nil, &entry), &d))
			if count <= 1 {
				entry.Count = 0
			}
			require.Equal(t, entryData{What: "derived", Grant: someGrant, Scope: where, Reason: "used_up", By: "book.bot-2_x", Parent: someGrant, Count: entry.Count}, d)
		}
		entry := Entry{What: "revoked"}
		require.JSONEq(t, `{"what":"revoked"}`, string(appendEntry(nil, &entry)))
	})
}

// A use opens a token in two steps and one string, in memory that the use before has left full: it comes to the same.
func TestNamedToken(t *testing.T) {
	e, s, at := &Engine{engine: &engine{keys: testKeys(t, "k")}}, new(scratch), time.UnixMicro(3e15)
	dotted, long := someToken(), someToken()
	dotted.app, dotted.grant = "com.example.book-bot", grantID(strings.Repeat("A", name16Len), "com.example.book-bot")
	long.event, long.account = strings.Repeat("e", 1024), strings.Repeat("a", 1024)
	delegated, derived := someToken(), derivedToken()
	delegated.delegates, derived.key = "weather third", ""
	for _, want := range []*sealedToken{someToken(), derived, dotted, delegated, long, someToken()} {
		require.NoError(t, e.open(t.Context(), s, e.keys.sealToken(want)))
		require.True(t, e.name(s, at))
		require.Equal(t, *want, s.token)
		ids := want.ids()
		require.Regexp(t, "^"+want.aggregate+`\.[0-9a-v]{25}$`, s.ids.entry)
		require.Equal(t, want.aggregate+"."+string(appendBase32(nil, 3e15, 12)), s.ids.entry[:len(want.aggregate)+13])
		ids.entry = s.ids.entry
		require.Equal(t, ids, s.ids)
	}
	require.False(t, e.keys.openToken(seal(e.keys.token, tokenPrefix, plainToken(t, e.keys, &sealedToken{grant: "short"})), new(sealedToken)))
}

// What is within the seal is trusted, but not to be well-formed.
func FuzzSealedPlaintext(f *testing.F) {
	k := testKeys(f, "k")
	plain := plainToken(f, k, someToken())
	f.Add(plain)
	f.Add(plain[:60])
	f.Add(plainToken(f, k, derivedToken()))
	f.Add([]byte{tokenFormat})
	code, _ := unseal(k.code, codePrefix, k.sealCode(sealedCode{account: "zhang-san", grant: someGrant}), nil)
	f.Add(code)
	f.Add(code[:len(code)-1])
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 3000 {
			return
		}
		var got, again sealedToken
		if k.openToken(seal(k.token, tokenPrefix, plain), &got) {
			require.True(t, k.openToken(k.sealToken(&got), &again))
			require.True(t, reflect.DeepEqual(got, again))
		}
		if c, ok := k.openCode(seal(k.code, codePrefix, plain)); ok {
			again, ok := k.openCode(k.sealCode(c))
			require.True(t, ok)
			require.Equal(t, c, again)
		}
	})
}

// What anybody may send.
func FuzzCredential(f *testing.F) {
	k := testKeys(f, "k", "1", "2")
	f.Add("")
	f.Add("bhst_")
	f.Add("bhsc_")
	f.Add("bhst_" + strings.Repeat("A", 200))
	code := sealedCode{account: "zhang-san", grant: someGrant}
	for _, s := range []string{k.sealToken(someToken()), k.sealCode(code)} {
		f.Add(s)
		f.Add(s[:len(s)-1])
		f.Add(s + "A")
		f.Add(strings.ToLower(s))
		f.Add(s[:40] + "\n" + s[40:])
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got sealedToken
		isToken := k.openToken(s, &got)
		if isToken {
			require.Equal(t, *someToken(), got)
		}
		c, isCode := k.openCode(s)
		if isCode {
			require.Equal(t, code, c)
		}
		if isToken || isCode { // in its one spelling
			raw, err := base64.RawURLEncoding.DecodeString(s[len(tokenPrefix):])
			require.NoError(t, err)
			require.Equal(t, s[len(tokenPrefix):], base64.RawURLEncoding.EncodeToString(raw))
		}
		require.False(t, isToken && isCode)
	})
}

func FuzzKeyword(f *testing.F) {
	f.Add("book", "a Book, please")
	f.Add("书", "我要一本书")
	f.Add("σ", "ΟΔΟΣ ς")
	f.Add("\u212a", "kk k")
	f.Fuzz(func(t *testing.T, keyword, text string) {
		keyword = strings.TrimSpace(keyword)
		if keyword == "" || !utf8.ValidString(keyword) || !utf8.ValidString(text) || len(keyword) > maxID || len(text) > 1000 {
			return
		}
		w := new(words)
		w.add(&trigger{keywords: []string{fold(keyword)}})
		said := false
		find(text, []*words{w}, func([]*trigger) bool { said = true; return false })
		runes, word := []rune(text), []rune(fold(keyword))
		want := false
		for i := 0; i+len(word) <= len(runes) && !want; i++ {
			j := i + len(word)
			want = fold(string(runes[i:j])) == string(word) &&
				(i == 0 || !spaced(runes[i-1]) || !spaced(runes[i])) && (j == len(runes) || !spaced(runes[j-1]) || !spaced(runes[j]))
		}
		require.Equal(t, want, said)
	})
}

// A code that this server sealed, for a grant that has another: from a write that was not made.
func TestCodeOfAnotherTry(t *testing.T) {
	e := manyEngine(t, 10)
	got, err := e.Emit(context.Background(), Event{ID: "1", Operation: Mention, Account: "zhang-san", App: "app-0", Domain: scope.MustDomain("group:1")})
	require.NoError(t, err)
	c, ok := e.keys.openCode(got[0].Code.Reveal())
	require.True(t, ok)
	c.secret[0]++
	_, _, err = e.Redeem(context.Background(), "app-0", NewSecret(e.keys.sealCode(c)))
	require.ErrorIs(t, err, ErrUnknown)
	require.Empty(t, Reason(err))
	_, _, err = e.Redeem(context.Background(), "app-0", got[0].Code)
	require.NoError(t, err)
}
