package authz_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/store"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

func clientKey(seed string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(seed, ed25519.SeedSize)[:ed25519.SeedSize]))
}

func signerOf(t testing.TB, key crypto.Signer, id string) *jose.Signer {
	t.Helper()
	s, err := jose.NewSigner(key, id)
	require.NoError(t, err)
	return s
}

func jwksOf(t testing.TB, signers ...*jose.Signer) string {
	t.Helper()
	var set jose.Set
	for _, s := range signers {
		set = append(set, s.Key())
	}
	text, err := json.Marshal(set)
	require.NoError(t, err)
	return string(text)
}

// A keyWorld is a server whose app "keys" has a key, "both" a key and a secret, "public" nothing.
type keyWorld struct {
	t      testing.TB
	az     *authz.Server
	store  *endpointStore
	mux    *http.ServeMux
	ahead  atomic.Int64
	serial atomic.Int64
	log    lockedBuffer
	signer *jose.Signer
}

func (w *keyWorld) now() time.Time {
	return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(w.ahead.Load()))
}

func keyApps(t testing.TB, s *jose.Signer) []authz.App {
	hash, err := authz.HashSecret(grant.NewSecret("chosen by a person"))
	require.NoError(t, err)
	keys := jwksOf(t, s)
	return []authz.App{
		{ID: "keys", JWKS: keys, Actions: []string{"message.write"}},
		{ID: "both", JWKS: keys, Secret: grant.NewSecret("both-secret")},
		{ID: "keys-alone", JWKS: keys, Secret: grant.NewSecret("both-secret"), AuthMethod: "private_key_jwt"},
		{ID: "secret-alone", JWKS: keys, Secret: grant.NewSecret("both-secret"), AuthMethod: "client_secret_basic"},
		{ID: "post-alone", Secret: grant.NewSecret("both-secret"), AuthMethod: "client_secret_post"},
		{ID: "human", SecretHash: hash},
		{ID: "public", AuthMethod: "none", RedirectURIs: []string{"https://public.example/cb"}},
		{ID: "rs", Secret: grant.NewSecret("rs-secret"), Introspect: true},
	}
}

func newKeyWorld(t testing.TB, change ...func(*authz.Config)) *keyWorld {
	w := &keyWorld{t: t, store: &endpointStore{Store: store.NewMemory()}, mux: http.NewServeMux(), signer: signerOf(t, clientKey("a"), "2026")}
	c := authz.Config{
		Issuer: endpointIssuer, Store: w.store, Key: grant.NewSecret(strings.Repeat("k", 32)), Now: w.now,
		Permit: func(context.Context, grant.Access) error { return nil }, Apps: keyApps(t, w.signer),
		Log:      slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Triggers: []grant.Trigger{{App: "keys", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}}},
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	w.az, err = authz.New(c)
	require.NoError(t, err)
	w.az.Routes(w.mux.Handle)
	t.Cleanup(func() {
		for _, secret := range []string{"eyJ", "bhsc_", "bhst_", "bhat_", "both-secret", "rs-secret", "chosen by a person"} {
			require.NotContains(t, w.log.String(), secret, "P6: a secret in the log")
		}
	})
	return w
}

// claims are those of a good assertion, changed by more: nil takes one away.
func (w *keyWorld) claims(id string, more map[string]any) map[string]any {
	now := w.now().Unix()
	c := map[string]any{"iss": id, "sub": id, "aud": endpointIssuer, "jti": fmt.Sprint("j", w.serial.Add(1)), "iat": now, "exp": now + 60}
	maps.Copy(c, more)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (w *keyWorld) assertion(id string, more map[string]any) string {
	w.t.Helper()
	text, err := w.signer.Sign("JWT", w.claims(id, more))
	require.NoError(w.t, err)
	return text
}

func (w *keyWorld) post(path, assertion string, form url.Values) *httptest.ResponseRecorder {
	form = maps.Clone(form)
	form.Set("client_assertion", assertion)
	if !form.Has("client_assertion_type") {
		form.Set("client_assertion_type", assertionType)
	}
	return w.do(endpointRequest("POST", path, form.Encode()))
}

func (w *keyWorld) do(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.mux.ServeHTTP(rec, r)
	return rec
}

var credentialsGrant = url.Values{"grant_type": {"client_credentials"}}

// RFC 7523 §2.2: at every endpoint that takes a form, with every algorithm, for the issuer and for any endpoint.
func TestPrivateKeyJWT(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for alg, key := range map[string]crypto.Signer{"EdDSA": clientKey("a"), "ES256": ec, "RS256": rs} {
		t.Run(alg, func(t *testing.T) {
			signer := signerOf(t, key, "")
			w := newKeyWorld(t, func(c *authz.Config) { c.Apps[0].JWKS = jwksOf(t, signer) })
			w.signer = signer
			rec := w.post("/oauth2/token", w.assertion("keys", nil), credentialsGrant)
			require.Equal(t, http.StatusOK, rec.Code, rec.Body)
			token := endpointJSON(t, rec)["access_token"].(string)
			rec = w.post("/oauth2/introspect", w.assertion("keys", nil), url.Values{"token": {token}, "client_id": {"keys"}})
			require.Equal(t, http.StatusOK, rec.Code, rec.Body)
			require.Equal(t, true, endpointJSON(t, rec)["active"])
			rec = w.post("/oauth2/revoke", w.assertion("keys", nil), url.Values{"token": {token}})
			require.Equal(t, http.StatusOK, rec.Code, rec.Body)
			rec = w.post("/oauth2/introspect", w.assertion("keys", nil), url.Values{"token": {token}})
			require.Equal(t, map[string]any{"active": false}, endpointJSON(t, rec))
		})
	}
	w := newKeyWorld(t)
	for _, aud := range []any{endpointIssuer, []string{endpointIssuer}, endpointIssuer + "/oauth2/token", []string{endpointIssuer + "/oauth2/token"}, endpointIssuer + "/oauth2/introspect", endpointIssuer + "/oauth2/revoke"} {
		rec := w.post("/oauth2/token", w.assertion("keys", map[string]any{"aud": aud}), credentialsGrant)
		require.Equal(t, http.StatusOK, rec.Code, "%v %s", aud, rec.Body)
	}
	for _, typ := range []string{"", "JWT", "jwt", "application/jwt", "client-authentication+jwt"} {
		text, err := w.signer.Sign(typ, w.claims("keys", nil))
		require.NoError(t, err)
		rec := w.post("/oauth2/token", text, credentialsGrant)
		require.Equal(t, http.StatusOK, rec.Code, "%q %s", typ, rec.Body)
	}
	now := w.now().Unix()
	for name, more := range map[string]map[string]any{
		"without iat":          {"iat": nil},
		"a clock that is fast": {"iat": now + 30, "nbf": now + 30, "exp": now + 630},
		"old and long":         {"iat": now - 590, "exp": now + 600},
		"a second left":        {"exp": now + 1},
		"more claims":          {"scope": "x", "nested": map[string]any{"a": []int{1}}},
		"a long jti":           {"jti": strings.Repeat("j", 256)},
	} {
		rec := w.post("/oauth2/token", w.assertion("keys", more), credentialsGrant)
		require.Equal(t, http.StatusOK, rec.Code, "%s: %s", name, rec.Body)
	}
	require.Equal(t, http.StatusOK, w.do(endpointRequest("POST", "/oauth2/token", credentialsGrant.Encode(), "Authorization", endpointBasic("both", "both-secret"))).Code)
	require.Equal(t, http.StatusOK, w.post("/oauth2/token", w.assertion("both", nil), credentialsGrant).Code, "either will do")

	// A grant is redeemed by it.
	issued, err := w.az.Emit(t.Context(), bubbleMentionOf("keys"))
	require.NoError(t, err)
	rec := w.post("/oauth2/token", w.assertion("keys", nil), url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {issued[0].Code.Reveal()}})
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
}

func bubbleMentionOf(app string) grant.Event {
	ev := bubbleMention("m-" + app)
	ev.App = app
	return ev
}

// What is wrong is 401 invalid_client; only whose signature is right learns what it was.
func TestPrivateKeyJWTRefuses(t *testing.T) {
	w := newKeyWorld(t)
	now := w.now().Unix()
	stranger := signerOf(t, clientKey("z"), "2026")
	by := func(s *jose.Signer, typ, id string, more map[string]any) string {
		text, err := s.Sign(typ, w.claims(id, more))
		require.NoError(t, err)
		return text
	}
	good := w.assertion("keys", nil)
	parts := strings.Split(good, ".")
	const same = "client authentication failed"
	for name, c := range map[string]struct{ assertion, says string }{
		"no such client":                {by(stranger, "JWT", "nobody", nil), same},
		"no such client, its key known": {by(w.signer, "JWT", "nobody", nil), same},
		"another's key":                 {by(stranger, "JWT", "keys", nil), same},
		"another kid":                   {by(signerOf(t, clientKey("a"), "2027"), "JWT", "keys", nil), same},
		"a client without keys":         {by(w.signer, "JWT", "post-alone", nil), same},
		"a public client":               {by(w.signer, "JWT", "public", nil), same},
		"a client with a secret alone":  {by(w.signer, "JWT", "secret-alone", nil), same},
		"another signature":             {parts[0] + "." + parts[1] + "." + strings.Split(w.assertion("keys", nil), ".")[2], same},
		"a well-known key":              {by(signerOf(t, rfc8037Key(t), "2026"), "JWT", "keys", nil), same},
		"a well-known key for nobody":   {by(signerOf(t, rfc8037Key(t), ""), "JWT", "nobody", nil), same},
		"an access token":               {by(w.signer, "at+jwt", "keys", nil), "malformed"},
		"a proof":                       {by(w.signer, "dpop+jwt", "keys", nil), "malformed"},
		"no signature":                  {parts[0] + "." + parts[1] + ".", same},
		"not a JWT":                     {"x", "malformed"},
		"alg none":                      {"eyJhbGciOiJub25lIn0." + parts[1] + ".", "malformed"},
		"no sub":                        {w.assertion("keys", map[string]any{"sub": nil}), "iss and sub"},
		"no iss":                        {w.assertion("keys", map[string]any{"iss": nil}), "iss and sub"},
		"iss is another":                {w.assertion("keys", map[string]any{"iss": "both"}), "iss and sub"},
		"sub is another":                {w.assertion("keys", map[string]any{"sub": "both"}), "iss and sub"},
		"sub is a number":               {w.assertion("keys", map[string]any{"sub": 1}), "malformed"},
		"no aud":                        {w.assertion("keys", map[string]any{"aud": nil}), "aud"},
		"another server's":              {w.assertion("keys", map[string]any{"aud": "https://other.example"}), "aud"},
		"two servers'":                  {w.assertion("keys", map[string]any{"aud": []string{endpointIssuer, "https://other.example"}}), "aud"},
		"aud twice the same":            {w.assertion("keys", map[string]any{"aud": []string{endpointIssuer, endpointIssuer}}), "aud"},
		"aud with a slash":              {w.assertion("keys", map[string]any{"aud": endpointIssuer + "/"}), "aud"},
		"aud in capitals":               {w.assertion("keys", map[string]any{"aud": "HTTPS://SOCIAL.EXAMPLE"}), "aud"},
		"aud of no endpoint":            {w.assertion("keys", map[string]any{"aud": endpointIssuer + "/oauth2/"}), "aud"},
		"no exp":                        {w.assertion("keys", map[string]any{"exp": nil}), "no exp"},
		"expired now":                   {w.assertion("keys", map[string]any{"exp": now}), "expired"},
		"for too long":                  {w.assertion("keys", map[string]any{"exp": now + 631}), "10 minutes"},
		"for ever":                      {w.assertion("keys", map[string]any{"exp": 253402300799}), "10 minutes"},
		"nbf to come":                   {w.assertion("keys", map[string]any{"nbf": now + 31}), "nbf"},
		"iat to come":                   {w.assertion("keys", map[string]any{"iat": now + 31}), "iat"},
		"iat long ago":                  {w.assertion("keys", map[string]any{"iat": now - 631}), "iat"},
		"no jti":                        {w.assertion("keys", map[string]any{"jti": nil}), "jti"},
		"a jti too long":                {w.assertion("keys", map[string]any{"jti": strings.Repeat("j", 257)}), "jti"},
		"too large":                     {w.assertion("keys", map[string]any{"x": strings.Repeat("x", 9000)}), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"} {
				form := url.Values{"grant_type": {"client_credentials"}, "token": {"x"}}
				rec := w.post(path, c.assertion, form)
				says := endpointRefused(t, rec, http.StatusUnauthorized, "invalid_client")
				require.Contains(t, says, c.says)
				require.NotEmpty(t, rec.Header().Get("WWW-Authenticate"))
			}
		})
	}
	found, err := w.store.List(t.Context(), store.Query{Kind: "assertion", Limit: 10})
	require.NoError(t, err)
	require.Empty(t, found, "what is refused writes nothing")

	refused := func(status int, code string, rec *httptest.ResponseRecorder) {
		t.Helper()
		endpointRefused(t, rec, status, code)
	}
	refused(401, "invalid_client", w.post("/oauth2/token", good, url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:saml2-bearer"}}))
	refused(401, "invalid_client", w.post("/oauth2/token", "", credentialsGrant))
	refused(401, "invalid_client", w.do(endpointRequest("POST", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}, "client_assertion": {good}}.Encode())))
	refused(400, "invalid_request", w.post("/oauth2/token", good, url.Values{"grant_type": {"client_credentials"}, "client_id": {"both"}}))
	refused(400, "invalid_request", w.post("/oauth2/token", good, url.Values{"grant_type": {"client_credentials"}, "client_secret": {"both-secret"}}))
	r := endpointRequest("POST", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}, "client_assertion": {good}, "client_assertion_type": {assertionType}}.Encode(), "Authorization", endpointBasic("both", "both-secret"))
	refused(400, "invalid_request", w.do(r))
	require.Equal(t, 200, w.post("/oauth2/token", good, credentialsGrant).Code, "none of this has used it up")
	refused(401, "invalid_client", w.post("/oauth2/token", good, credentialsGrant))
	refused(401, "invalid_client", w.post("/oauth2/introspect", good, url.Values{"token": {"x"}}))

	down := error(errors.New("no route to the store"))
	w.store.failApply.Store(&down)
	refused(503, "temporarily_unavailable", w.post("/oauth2/token", w.assertion("keys", nil), credentialsGrant))

	// A Clients of one's own refuses until it is told for whom the assertions are and where to keep their IDs.
	clients, err := authz.NewClients(keyApps(t, w.signer))
	require.NoError(t, err)
	request := func() *http.Request {
		return endpointRequest("POST", "/", url.Values{"client_assertion": {w.assertion("keys", nil)}, "client_assertion_type": {assertionType}}.Encode())
	}
	_, err = clients.Authenticate(request())
	require.ErrorContains(t, err, "not offered")
	clients.Audience, clients.Store, clients.Now = []string{endpointIssuer}, store.NewMemory(), w.now
	who, err := clients.Authenticate(request())
	require.NoError(t, err)
	require.Equal(t, "keys", who.ID)
}

// The private key of RFC 8037 §A.1, which everybody has.
func rfc8037Key(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	var seed []byte
	require.NoError(t, json.Unmarshal([]byte(`"nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="`), &seed))
	return ed25519.NewKeyFromSeed(seed)
}

// 64 requests with one assertion, on two servers of every store: one is let in.
func TestPrivateKeyJWTOnce(t *testing.T) {
	stores.Everywhere(t, func(t *testing.T, s stores.Maker) {
		node := s.New(t)
		var servers [2]*keyWorld
		for i := range servers {
			st := node()
			servers[i] = newKeyWorld(t, func(c *authz.Config) { c.Store = st })
		}
		for range s.Some(5) {
			w := servers[0]
			text, err := w.signer.Sign("JWT", w.claims("keys", map[string]any{"jti": fmt.Sprint(s.Name, w.serial.Add(1))}))
			require.NoError(t, err)
			var wg sync.WaitGroup
			var won, lost atomic.Int64
			for i := range 64 {
				wg.Go(func() {
					switch rec := servers[i%2].post("/oauth2/token", text, credentialsGrant); rec.Code {
					case http.StatusOK:
						won.Add(1)
					case http.StatusUnauthorized:
						lost.Add(1)
					default:
						t.Error(rec.Code, rec.Body)
					}
				})
			}
			wg.Wait()
			require.Equal(t, []int64{1, 63}, []int64{won.Load(), lost.Load()})
		}
	})
}

// The ID of an assertion is kept for a minute longer than it is good, and not for ever.
func TestPrivateKeyJWTPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := signerOf(t, clientKey("a"), "")
		servers, mem := bubble(t, 1, func(c *authz.Config) { c.Apps = append(c.Apps, authz.App{ID: "keys", JWKS: jwksOf(t, signer)}) })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = servers[0].Run(ctx) })
		mux := http.NewServeMux()
		servers[0].Routes(mux.Handle)
		text, err := signer.Sign("", map[string]any{"iss": "keys", "sub": "keys", "aud": endpointIssuer, "jti": "1", "exp": time.Now().Add(5 * time.Minute).Unix()})
		require.NoError(t, err)
		ask := func() int {
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, endpointRequest("POST", "/oauth2/token", url.Values{"grant_type": {"client_credentials"}, "client_assertion": {text}, "client_assertion_type": {assertionType}}.Encode()))
			return rec.Code
		}
		require.Equal(t, 200, ask())
		for range 5 {
			require.Equal(t, 1, remain(t, mem, "assertion"))
			require.Equal(t, 401, ask())
			time.Sleep(time.Minute)
		}
		time.Sleep(3 * time.Minute)
		require.Zero(t, remain(t, mem, "assertion"))
		require.Equal(t, 401, ask(), "it has expired")
		cancel()
		wg.Wait()
	})
}

// A public client is refused as one that is not known, at every endpoint and by every grant there is.
func TestPublicClientIsRefused(t *testing.T) {
	w := newKeyWorld(t)
	for _, header := range [][]string{nil, {"Authorization", endpointBasic("public", "")}, {"Authorization", endpointBasic("public", "secret-secret")}} {
		for path, form := range map[string]url.Values{
			"/oauth2/token":      {"grant_type": {"client_credentials"}},
			"/oauth2/token?":     {"grant_type": {authz.GrantTypeOperation}, "code": {"x"}},
			"/oauth2/introspect": {"token": {"x"}},
			"/oauth2/revoke":     {"token": {"x"}},
			"/oauth2/use":        {"token": {"x"}, "scope": {"group:42/message.write"}},
		} {
			form.Set("client_id", "public")
			endpointRefused(t, w.do(endpointRequest("POST", strings.TrimSuffix(path, "?"), form.Encode(), header...)), 401, "invalid_client")
		}
	}
	endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", "grant_type=client_credentials&client_id=public&client_secret=12345678")), 401, "invalid_client")
	r := httptest.NewRequest("GET", "/oauth2/grants", nil)
	r.Header.Set("Authorization", endpointBasic("public", ""))
	endpointRefused(t, w.do(r), 401, "invalid_client")
	clients, err := authz.NewClients(keyApps(t, w.signer))
	require.NoError(t, err)
	_, err = clients.Authenticate(endpointRequest("POST", "/", "client_id=public"))
	require.Error(t, err)
}

// An app that is marked authenticates by that method and no other.
func TestAuthMethod(t *testing.T) {
	w := newKeyWorld(t)
	for id, want := range map[string][3]int{ // Basic, body, assertion
		"both":         {200, 200, 200},
		"keys":         {401, 401, 200},
		"keys-alone":   {401, 401, 200},
		"secret-alone": {200, 401, 401},
		"post-alone":   {401, 200, 401},
	} {
		got := [3]int{
			w.do(endpointRequest("POST", "/oauth2/token", credentialsGrant.Encode(), "Authorization", endpointBasic(id, "both-secret"))).Code,
			w.do(endpointRequest("POST", "/oauth2/token", "grant_type=client_credentials&client_secret=both-secret&client_id="+id)).Code,
			w.post("/oauth2/token", w.assertion(id, nil), credentialsGrant).Code,
		}
		require.Equal(t, want, got, id)
	}
}

func TestAppCredentials(t *testing.T) {
	key := jwksOf(t, signerOf(t, clientKey("a"), ""))
	hash, err := authz.HashSecret(grant.NewSecret("chosen by a person"))
	require.NoError(t, err)
	private := strings.Replace(key, `"x"`, `"d":"AA","x"`, 1)
	for want, a := range map[string]authz.App{
		"Secret has 0 bytes":                 {},
		"JWKS: jose: invalid":                {JWKS: "{}"},
		`private part, "d"`:                  {JWKS: private},
		"Secret and SecretHash":              {Secret: grant.NewSecret("12345678"), SecretHash: hash},
		"SecretHash is not $argon2id":        {SecretHash: grant.NewSecret("$2a$10$abcdefghijklmnopqrstuv")},
		"SecretHash has m=1048576":           {SecretHash: grant.NewSecret(strings.Replace(hash.Reveal(), "m=19456", "m=1048576", 1))},
		"private_key_jwt needs JWKS":         {Secret: grant.NewSecret("12345678"), AuthMethod: "private_key_jwt"},
		"Secret has 0 bytes, want":           {JWKS: key, AuthMethod: "client_secret_basic"},
		"neither Secret nor JWKS":            {JWKS: key, AuthMethod: "none"},
		"no Actions and does not introspect": {AuthMethod: "none", Introspect: true},
		`"tls_client_auth" is none of`:       {Secret: grant.NewSecret("12345678"), AuthMethod: "tls_client_auth"},
	} {
		a.ID = "app"
		_, err := authz.NewClients([]authz.App{a})
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, `authz: app "app": `)
		config := authz.Config{Issuer: endpointIssuer, Apps: []authz.App{a}, Permit: func(context.Context, grant.Access) error { return nil }}
		_, err = authz.New(config)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "12345678")
	}
}

// Who edits an app need not know its secret, of either kind; its keys are as they are said.
func TestChangeKeepsCredentials(t *testing.T) {
	w := newKeyWorld(t, func(c *authz.Config) { c.Store = store.NewMemory() })
	basic := func(id, secret string) int {
		return w.do(endpointRequest("POST", "/oauth2/token", credentialsGrant.Encode(), "Authorization", endpointBasic(id, secret))).Code
	}
	change := func(a authz.App) {
		t.Helper()
		require.NoError(t, w.az.Change(t.Context(), authz.Change{Apps: []authz.App{a}}))
	}
	change(authz.App{ID: "human", Name: "renamed"})
	require.Equal(t, 200, basic("human", "chosen by a person"))
	change(authz.App{ID: "human", Secret: grant.NewSecret("made by a machine")})
	require.Equal(t, []int{401, 200}, []int{basic("human", "chosen by a person"), basic("human", "made by a machine")})
	hash, err := authz.HashSecret(grant.NewSecret("chosen again"))
	require.NoError(t, err)
	change(authz.App{ID: "human", SecretHash: hash})
	require.Equal(t, []int{401, 200}, []int{basic("human", "made by a machine"), basic("human", "chosen again")})

	next := signerOf(t, clientKey("b"), "2027")
	change(authz.App{ID: "keys", JWKS: jwksOf(t, w.signer, next), Actions: []string{"message.write"}})
	require.Equal(t, 200, w.post("/oauth2/token", w.assertion("keys", nil), credentialsGrant).Code)
	apps, _, err := w.az.Configuration(t.Context())
	require.NoError(t, err)
	require.Equal(t, jwksOf(t, w.signer, next), apps[0].JWKS)
	change(authz.App{ID: "keys", JWKS: jwksOf(t, next), Actions: []string{"message.write"}})
	require.Equal(t, 401, w.post("/oauth2/token", w.assertion("keys", nil), credentialsGrant).Code)
	w.signer = next
	require.Equal(t, 200, w.post("/oauth2/token", w.assertion("keys", nil), credentialsGrant).Code)

	change(authz.App{ID: "both", AuthMethod: "none"})
	change(authz.App{ID: "both", Secret: grant.NewSecret("another one")})
	require.Equal(t, []int{401, 200}, []int{basic("both", "both-secret"), basic("both", "another one")}, "none has left nothing behind")
	err = w.az.Change(t.Context(), authz.Change{Apps: []authz.App{{ID: "both", JWKS: "{}"}}})
	require.ErrorIs(t, err, grant.ErrInvalid)
}

// An app of ours that has no secret does all it does with its key.
func TestPrivateKeyJWTByTheApp(t *testing.T) {
	key, err := app.NewKey(clientKey("a"), "")
	require.NoError(t, err)
	s := authztest.New(t, authz.Config{
		Apps:     []authz.App{{ID: "keys", JWKS: key.JWKS(), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "keys", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Deliver: grant.Poll}},
	})
	client := s.Client("keys")
	client.Key = key
	s.MustEmit(bubbleMentionOf("keys"))
	waiting, err := client.Grants(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, waiting, 1)
	token, err := client.Redeem(t.Context(), waiting[0].Code)
	require.NoError(t, err)
	require.NoError(t, client.Revoke(t.Context(), token))
	s.Clock.Advance(time.Hour)
	_, err = client.Grants(t.Context(), 0)
	require.NoError(t, err, "its own token is over, and another is fetched")
}

// Access tokens of a client that has keys alone are good on every server with the same Key, and forged ones cost the
// store nothing.
func TestAccessTokenOfKeys(t *testing.T) {
	w := newKeyWorld(t)
	rec := w.post("/oauth2/token", w.assertion("keys", nil), credentialsGrant)
	token := endpointJSON(t, rec)["access_token"].(string)
	other := newKeyWorld(t, func(c *authz.Config) { c.Store = w.store })
	poll := func(w *keyWorld, token string) int {
		r := httptest.NewRequest("GET", "/oauth2/grants", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		return w.do(r).Code
	}
	require.Equal(t, []int{200, 200}, []int{poll(w, token), poll(other, token)})
	stranger := newKeyWorld(t, func(c *authz.Config) { c.Key = grant.NewSecret(strings.Repeat("z", 32)) })
	forged := endpointJSON(t, stranger.post("/oauth2/token", stranger.assertion("keys", nil), credentialsGrant))["access_token"].(string)
	asked := error(errors.New("the store was asked"))
	w.store.failGet.Store(&asked)
	require.Equal(t, []int{503, 401}, []int{poll(w, token), poll(w, forged)})
}
