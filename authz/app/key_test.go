package app_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz/app"
)

// A keyServer takes what the client sends and answers as told.
type keyServer struct {
	seen   []*http.Request
	forms  []map[string][]string
	status int // of grants, once
}

func (s *keyServer) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPost {
		if err := r.ParseForm(); err != nil {
			return nil, err
		}
	}
	s.seen, s.forms = append(s.seen, r), append(s.forms, r.PostForm)
	status, body := 200, `{"grants":[]}`
	if strings.HasSuffix(r.URL.Path, "/token") {
		body = fmt.Sprintf(`{"access_token":"own-%d","token_type":"Bearer","expires_in":600}`, len(s.seen))
	} else if s.status != 0 {
		status, body, s.status = s.status, `{"error":"invalid_token"}`, 0
	}
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: readCloser(body), Request: r}, nil
}

type stringBody struct{ *strings.Reader }

func (stringBody) Close() error { return nil }

func readCloser(s string) stringBody { return stringBody{strings.NewReader(s)} }

// A Client with a key polls with a token of its own, which it fetches by an assertion, keeps, and fetches again when
// the server has forgotten it.
func TestClientWithKeyPolls(t *testing.T) {
	s := &keyServer{}
	key, err := app.NewKey(ed25519.NewKeyFromSeed(make([]byte, 32)), "k1")
	require.NoError(t, err)
	c := &app.Client{Issuer: "https://social.example", ID: "keys", Key: key, Transport: s}
	for range 2 {
		_, err := c.Grants(t.Context(), 0)
		require.NoError(t, err)
	}
	require.Len(t, s.seen, 3)
	require.Equal(t, "/oauth2/token", s.seen[0].URL.Path)
	require.Empty(t, s.seen[0].Header.Get("Authorization"))
	require.Equal(t, []string{"client_credentials"}, s.forms[0]["grant_type"])
	require.Equal(t, []string{"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, s.forms[0]["client_assertion_type"])
	require.NotContains(t, s.forms[0], "client_secret")
	require.Equal(t, "Bearer own-1", s.seen[1].Header.Get("Authorization"))
	require.Equal(t, "Bearer own-1", s.seen[2].Header.Get("Authorization"))
	s.status = 401
	_, err = c.Grants(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, s.seen, 6)
	require.Equal(t, "Bearer own-5", s.seen[5].Header.Get("Authorization"))
	require.NotEqual(t, s.forms[0]["client_assertion"], s.forms[4]["client_assertion"], "each assertion is another")
}

func TestKey(t *testing.T) {
	private := ed25519.NewKeyFromSeed([]byte(strings.Repeat("private!", 4)))
	key, err := app.NewKey(private, "k1")
	require.NoError(t, err)
	require.False(t, key.IsZero())
	require.Contains(t, key.JWKS(), `"kid":"k1"`)
	require.NotContains(t, key.JWKS(), `"d"`)
	client := app.Client{Key: key}
	text, err := json.Marshal(key)
	require.NoError(t, err)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", key, "client", client)
	shown := string(text) + log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		shown += fmt.Sprintf(verb, key) + fmt.Sprintf(verb, client) + fmt.Sprintf(verb, &client) + fmt.Sprintf(verb, struct{ k app.Key }{key})
	}
	for _, seed := range []string{"private!", fmt.Sprintf("%x", "private!"), "112 114 105 118", "0x70, 0x72", base64.StdEncoding.EncodeToString(private)[:12]} {
		require.NotContains(t, shown, seed)
	}
	require.Contains(t, shown, "key k1")
	require.Empty(t, app.Key{}.JWKS())
	require.Equal(t, "no key", fmt.Sprint(app.Key{}))

	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	_, err = app.NewKey(p384, "")
	require.ErrorContains(t, err, "P-256")
	_, err = app.NewKey(nil, "")
	require.Error(t, err)
	for want, c := range map[string]*app.Client{
		"or a Key": {ID: "keys"},
		"not both": {ID: "keys", Secret: app.NewSecret("12345678"), Key: key},
	} {
		c.Issuer, c.Transport = "https://social.example", &keyServer{}
		_, err := c.Grants(t.Context(), 0)
		require.ErrorContains(t, err, want)
	}
}

func Example_privateKeyJWT() {
	key, err := app.NewKey(ed25519.NewKeyFromSeed(make([]byte, 32)), "2026-11")
	if err != nil {
		panic(err)
	}
	fmt.Println(key.JWKS()) // is registered with the server
	client := &app.Client{Issuer: "https://social.example", ID: "bookbot", Key: key}
	fmt.Println(client.Key)
	// Output:
	// {"keys":[{"use":"sig","kty":"OKP","kid":"2026-11","crv":"Ed25519","alg":"EdDSA","x":"O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik"}]}
	// key 2026-11
}
