package authz

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseIdempotencyKey(t *testing.T) {
	for value, want := range map[string]string{
		`"8e03978e-40d5-43dd-bc93-6894a57f9324"`: "8e03978e-40d5-43dd-bc93-6894a57f9324",
		`8e03978e-40d5-43dd-bc93-6894a57f9324`:   "8e03978e-40d5-43dd-bc93-6894a57f9324",
		`  "a"  `:                                "a",
		`" a, b; c "`:                            " a, b; c ",
		`"\"\\"`:                                 `"\`,
		`"'"`:                                    "'",
		`:YQ==:`:                                 ":YQ==:",
		strings.Repeat("k", 255):                 strings.Repeat("k", 255),
		`"` + strings.Repeat("k", 255) + `"`:     strings.Repeat("k", 255),
		`"` + strings.Repeat(`\\`, 255) + `"`:    strings.Repeat(`\`, 255),
	} {
		got, ok := parseIdempotencyKey(value)
		require.True(t, ok, value)
		require.Equal(t, want, got)
	}
	for _, value := range []string{"", " ", `"`, `""`, `"a`, `a"`, `"a" "b"`, `"a", "b"`, "a, b", "a b", `"a";p=1`, "a;p", `"\a"`, `"\"`, `"a\`, `\a`, "\ta", "a\t", "é", `"é"`,
		strings.Repeat("k", 256), `"` + strings.Repeat("k", 256) + `"`, `"` + strings.Repeat("k", 1<<20) + `"`} {
		got, ok := parseIdempotencyKey(value)
		require.False(t, ok, "%.80q", value)
		_ = got
	}
	// Every byte, with quotes and without.
	for c := range 256 {
		b := string([]byte{'k', byte(c), 'k'})
		_, bare := parseIdempotencyKey(b)
		require.Equal(t, c > ' ' && c <= '~' && !strings.ContainsRune(`",;\`, rune(c)), bare, "%q", b)
		_, quoted := parseIdempotencyKey(`"` + b + `"`)
		require.Equal(t, c >= ' ' && c <= '~' && c != '"' && c != '\\', quoted, "%q", b)
	}
}

// Whatever a client sends, a key is what one string says, and can be said in that way again.
func FuzzIdempotencyKey(f *testing.F) {
	for _, seed := range []string{`"a"`, "a", `"\"\\"`, `"`, `"a";b`, "\xff", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		key, ok := parseIdempotencyKey(value)
		if !ok {
			return
		}
		if key == "" || len(key) > maxIdempotencyKey {
			t.Fatalf("%q: %d bytes", value, len(key))
		}
		again, ok := parseIdempotencyKey(`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`)
		if !ok || again != key {
			t.Fatalf("%q is %q, and then %q", value, key, again)
		}
	})
}

// Each of method, URL and body makes another request, and no two that differ look the same; the host does not count.
func TestFingerprint(t *testing.T) {
	seen := map[[32]byte]string{}
	for _, row := range [][3]string{
		{"POST", "/a", "b"}, {"PUT", "/a", "b"}, {"POST", "/a", ""}, {"POST", "/ab", ""}, {"POST", "/", "ab"}, {"POST", "/a?b", ""}, {"POST", "/a?", "b"}, {"POST", "/%61", "b"},
		{"POS", "/a", "b"}, {"POSTT", "/a", "b"}, {"POST", "//a", "b"},
	} {
		sum := fingerprint(&http.Request{Method: row[0], RequestURI: row[1]}, []byte(row[2]))
		require.Empty(t, seen[sum], row)
		seen[sum] = row[0] + row[1] + row[2]
	}
	want := fingerprint(httptest.NewRequest("POST", "/a?b=c", nil), []byte("b"))
	require.Equal(t, want, fingerprint(httptest.NewRequest("POST", "http://node-7.internal:8080/a?b=c", nil), []byte("b")))
	u, err := url.Parse("https://social.example/a?b=c")
	require.NoError(t, err)
	require.Equal(t, want, fingerprint(&http.Request{Method: "POST", URL: u}, []byte("b")))
	stripped := httptest.NewRequest("POST", "/v1/a", nil)
	stripped.URL.Path = "/a"
	require.NotEqual(t, fingerprint(httptest.NewRequest("POST", "/a", nil), nil), fingerprint(stripped, nil), "what was asked for, not what was stripped")
}

// A record that is damaged is no answer, and nothing of it goes out.
func TestReplayDamaged(t *testing.T) {
	for _, answer := range []string{"", "\n", "{}\n", `{"status":201}`, `{"status":99}` + "\n", `{"status":1000}` + "\n", "{\nbody", "null\n", `{"status":"201"}` + "\n"} {
		rec := httptest.NewRecorder()
		require.Error(t, replay(rec, []byte(answer)), "%q", answer)
		require.Empty(t, rec.Header())
	}
	rec := httptest.NewRecorder()
	require.NoError(t, replay(rec, []byte(`{"status":201,"header":{"A":["1","2"]}}`+"\n\nbody\n")))
	require.Equal(t, 201, rec.Code)
	require.Equal(t, "\nbody\n", rec.Body.String())
	require.Equal(t, []string{"1", "2"}, rec.Header()["A"])
}
