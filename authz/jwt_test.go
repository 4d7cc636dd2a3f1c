package authz_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
	"github.com/behest-go/behest/scope"
)

const jwtAudience = "https://api.example/v1"

var (
	jwtSeed  = strings.Repeat("s", ed25519.SeedSize)
	jwtOther = strings.Repeat("t", ed25519.SeedSize)
)

// newJWTWorld is a remoteWorld where a mention gives a stateless token, and a resource server that takes it.
func newJWTWorld(t *testing.T, change ...func(*authz.Config)) *remoteWorld {
	w := newRemoteWorld(t, append([]func(*authz.Config){func(c *authz.Config) {
		c.JWTAudience, c.JWTKeys = jwtAudience, []grant.Secret{grant.NewSecret(jwtSeed)}
		c.Triggers[0] = grant.Trigger{ID: "stateless", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"},
			Stateless: true, Uses: grant.Unlimited, For: 5 * time.Minute, Deliver: grant.Poll}
	}}, change...)...)
	w.use(w.jwtRemote(nil))
	return w
}

func (w *remoteWorld) jwtRemote(change func(*authz.RemoteConfig)) *authz.Remote {
	return w.remote(func(c *authz.RemoteConfig) {
		c.Resource, c.Now, c.ClientID, c.Secret = jwtAudience, w.Clock.Now, "", grant.Secret{}
		if change != nil {
			change(c)
		}
	})
}

func (w *remoteWorld) use(m *authz.Remote) {
	w.m, w.mux = m, http.NewServeMux()
	w.mux.Handle("POST /groups/{group}/messages", m.Require("group:{group}/message.write")(w.handler()))
	w.mux.Handle("GET /groups/{group}/members", m.Require("group:{group}/member.read")(w.handler()))
}

func (w *remoteWorld) issue() authz.Issued {
	w.t.Helper()
	return w.MustEmit(grant.Event{ID: fmt.Sprint("m", w.ran.Add(1000)), Operation: grant.Mention, Account: "zhang-san", Domain: group42, App: "bookbot"})[0]
}

// claims are those of a token that was just made, to be changed and signed anew.
func (w *remoteWorld) claims() map[string]any {
	w.t.Helper()
	parts := strings.Split(w.Redeem(w.issue()), ".")
	require.Len(w.t, parts, 3)
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(w.t, err)
	var claims map[string]any
	require.NoError(w.t, json.Unmarshal(raw, &claims))
	return claims
}

func signed(t *testing.T, seed, typ string, claims any) string {
	t.Helper()
	signer, err := jose.NewSigner(ed25519.NewKeyFromSeed([]byte(seed)), "")
	require.NoError(t, err)
	token, err := signer.Sign(typ, claims)
	require.NoError(t, err)
	return token
}

// The token of a stateless trigger is a JWT access token (RFC 9068), which a resource server verifies alone.
func TestJWT(t *testing.T) {
	w := newJWTWorld(t)
	g := w.issue()
	answer, err := w.Client("bookbot").Redeem(t.Context(), app.NewSecret(g.Code.Reveal()))
	require.NoError(t, err)
	token := answer.AccessToken.Reveal()
	parts := strings.Split(token, ".")
	require.Len(t, parts, 3)
	head, err := base64.RawURLEncoding.DecodeString(parts[0])
	require.NoError(t, err)
	key, err := jose.NewKey(ed25519.NewKeyFromSeed([]byte(jwtSeed)).Public(), "")
	require.NoError(t, err)
	require.JSONEq(t, `{"alg":"EdDSA","typ":"at+jwt","kid":"`+key.Thumbprint()+`"}`, string(head)) // RFC 9068 §2.1
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(t, err)
	var claims map[string]any
	require.NoError(t, json.Unmarshal(text, &claims))
	now := w.Clock.Now()
	require.NotEmpty(t, claims["jti"])
	delete(claims, "jti")
	require.Equal(t, map[string]any{ // RFC 9068 §2.2
		"iss": w.URL, "aud": jwtAudience, "sub": "zhang-san", "client_id": "bookbot", "scope": "group:42/message.write",
		"iat": float64(now.Unix()), "exp": float64(now.Add(5 * time.Minute).Unix()),
		"act": map[string]any{"sub": "bookbot"}, "grant_id": g.ID, "domain": "group:42", "operation": "mention", "event": g.Event.ID,
	}, claims)
	require.NotEqual(t, w.claims()["jti"], w.claims()["jti"])

	w.line.lose(0, 0)
	for range 10 {
		require.Equal(t, 201, w.post(token).Code)
	}
	require.Equal(t, 1, w.line.asked, "the keys, once")
	d := w.via.Load()
	require.Equal(t, "group:42/message.write", d.Granted().String())
	require.Equal(t, []any{"zhang-san", "bookbot", group42, group42, g.ID, grant.Mention, g.Event.ID, grant.Unlimited, grant.Unlimited, now.Unix(), now.Add(5 * time.Minute).Unix()},
		[]any{d.Account, d.App, d.Domain, d.GrantedIn(), d.Grant, d.Operation, d.Event, d.Uses, d.Left, d.IssuedAt.Unix(), d.NotAfter.Unix()})

	// P8: the redemption is in the ledger, and that is all of it: the uses are not.
	entries, err := w.Engine().Ledger(t.Context(), "zhang-san", "", 100)
	require.NoError(t, err)
	whats := map[string]int{}
	for _, e := range entries {
		whats[e.What]++
	}
	require.Equal(t, map[string]int{"issued": 3, "redeemed": 3}, whats)

	// What is given up: who is revoked acts until the token expires.
	require.NoError(t, w.Engine().Revoke(t.Context(), "zhang-san", g.ID))
	require.Equal(t, 201, w.post(token).Code)
	w.Clock.Advance(5 * time.Minute)
	rec := w.post(token)
	require.Equal(t, 401, rec.Code)
	require.Equal(t, "expired", reasonOf(t, rec))

	// A code is redeemed once, whatever comes of it, and its grant's revocation holds before.
	_, err = w.Client("bookbot").Redeem(t.Context(), app.NewSecret(g.Code.Reveal()))
	require.Error(t, err)
	revoked := w.issue()
	require.NoError(t, w.Engine().Revoke(t.Context(), "zhang-san", revoked.ID))
	_, err = w.Client("bookbot").Redeem(t.Context(), app.NewSecret(revoked.Code.Reveal()))
	require.Error(t, err)
	require.NotContains(t, w.log.String(), token)
}

// Each of these is not a token for this resource server, and the stranger who brings it gets one answer.
func TestJWTRefused(t *testing.T) {
	w := newJWTWorld(t)
	now := w.Clock.Now().Unix()
	with := func(change func(c map[string]any)) map[string]any {
		c := w.claims()
		change(c)
		return c
	}
	set := func(name string, value any) map[string]any { return with(func(c map[string]any) { c[name] = value }) }
	without := func(name string) map[string]any { return with(func(c map[string]any) { delete(c, name) }) }
	unsigned := func(head string, claims map[string]any, sign func(string) []byte) string {
		text, err := json.Marshal(claims)
		require.NoError(t, err)
		input := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString(text)
		return input + "." + base64.RawURLEncoding.EncodeToString(sign(input))
	}
	public := ed25519.NewKeyFromSeed([]byte(jwtSeed)).Public().(ed25519.PublicKey)
	good := signed(t, jwtSeed, "at+jwt", w.claims())
	require.Equal(t, 201, w.post(good).Code)
	parts := strings.Split(good, ".")

	tokens := map[string]string{
		"an ID token":                         signed(t, jwtSeed, "JWT", w.claims()),
		"another typ":                         signed(t, jwtSeed, "dpop+jwt", w.claims()),
		"no typ":                              signed(t, jwtSeed, "", w.claims()),
		"no exp":                              signed(t, jwtSeed, "at+jwt", without("exp")),
		"no iat":                              signed(t, jwtSeed, "at+jwt", without("iat")),
		"no aud":                              signed(t, jwtSeed, "at+jwt", without("aud")),
		"no iss":                              signed(t, jwtSeed, "at+jwt", without("iss")),
		"no sub":                              signed(t, jwtSeed, "at+jwt", without("sub")),
		"no jti":                              signed(t, jwtSeed, "at+jwt", without("jti")),
		"no client_id":                        signed(t, jwtSeed, "at+jwt", without("client_id")),
		"no scope":                            signed(t, jwtSeed, "at+jwt", without("scope")),
		"no grant_id":                         signed(t, jwtSeed, "at+jwt", without("grant_id")),
		"no domain":                           signed(t, jwtSeed, "at+jwt", without("domain")),
		"another audience":                    signed(t, jwtSeed, "at+jwt", set("aud", "https://other.example")),
		"other audiences":                     signed(t, jwtSeed, "at+jwt", set("aud", []string{"https://other.example", w.URL})),
		"the client as audience":              signed(t, jwtSeed, "at+jwt", set("aud", "bookbot")),
		"another issuer":                      signed(t, jwtSeed, "at+jwt", set("iss", "https://other.example")),
		"the issuer and a slash":              signed(t, jwtSeed, "at+jwt", set("iss", w.URL+"/")),
		"a life longer than 5 minutes":        signed(t, jwtSeed, "at+jwt", set("exp", now+301)),
		"iat in the future beyond the leeway": signed(t, jwtSeed, "at+jwt", with(func(c map[string]any) { c["iat"], c["exp"] = now+61, now+120 })),
		"nbf in the future":                   signed(t, jwtSeed, "at+jwt", set("nbf", now+61)),
		"exp is no number":                    signed(t, jwtSeed, "at+jwt", set("exp", fmt.Sprint(now+60))),
		"exp is negative":                     signed(t, jwtSeed, "at+jwt", set("exp", -1)),
		"another actor":                       signed(t, jwtSeed, "at+jwt", set("act", map[string]any{"sub": "mallory"})),
		"an actor that is none":               signed(t, jwtSeed, "at+jwt", set("act", "bookbot")),
		"bound to a key":                      signed(t, jwtSeed, "at+jwt", set("cnf", map[string]any{"jkt": "x"})),
		"scopes in two domains":               signed(t, jwtSeed, "at+jwt", set("scope", "group:42/message.write group:7/message.write")),
		"a scope that is none":                signed(t, jwtSeed, "at+jwt", set("scope", "openid profile")),
		"another domain than its scope":       signed(t, jwtSeed, "at+jwt", set("domain", "group:42/thread:1")),
		"a wider domain than its scope":       signed(t, jwtSeed, "at+jwt", set("domain", "group:7")),
		"a kid of another set":                signed(t, jwtOther, "at+jwt", w.claims()),
		"claims that are none":                signed(t, jwtSeed, "at+jwt", []string{"x"}),
		"alg none":                            unsigned(`{"alg":"none","typ":"at+jwt"}`, w.claims(), func(string) []byte { return nil }),
		"alg none in capitals":                unsigned(`{"alg":"NONE","typ":"at+jwt"}`, w.claims(), func(string) []byte { return nil }),
		"HS256 with the public key": unsigned(`{"alg":"HS256","typ":"at+jwt"}`, w.claims(), func(input string) []byte {
			mac := hmac.New(sha256.New, public)
			mac.Write([]byte(input))
			return mac.Sum(nil)
		}),
		"its own key": unsigned(`{"alg":"EdDSA","typ":"at+jwt","jwk":{"kty":"OKP","crv":"Ed25519","x":"`+base64.RawURLEncoding.EncodeToString(
			ed25519.NewKeyFromSeed([]byte(jwtOther)).Public().(ed25519.PublicKey))+`"}}`, w.claims(), func(input string) []byte {
			return ed25519.Sign(ed25519.NewKeyFromSeed([]byte(jwtOther)), []byte(input))
		}),
		"crit":                     unsigned(`{"alg":"EdDSA","typ":"at+jwt","crit":["x"],"x":1}`, w.claims(), func(input string) []byte { return ed25519.Sign(ed25519.NewKeyFromSeed([]byte(jwtSeed)), []byte(input)) }),
		"another signature":        parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"another payload":          parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{}`)) + "." + parts[2],
		"no signature":             parts[0] + "." + parts[1] + ".",
		"dots":                     "..",
		"huge":                     parts[0] + "." + strings.Repeat("A", 9000) + "." + parts[2],
		"a delegation token":       w.Token("bookbot", "zhang-san", "group:42"), // this resource server has no client to spend it as
		"an extension in its text": good + "=",
	}
	before := w.ran.Load()
	for name, token := range tokens {
		w.ran.Store(0)
		rec := w.post(token)
		require.Equal(t, 401, rec.Code, name)
		require.Equal(t, `{"error":"invalid_token","error_description":"the token is not valid"}`, body(rec), name)
		require.Equal(t, `Bearer realm="`+w.URL+`", error="invalid_token", error_description="the token is not valid", resource_metadata="https://api.example/.well-known/oauth-protected-resource/v1"`, rec.Header().Get("WWW-Authenticate"))
		require.Zero(t, w.ran.Load(), name)
	}
	w.ran.Store(before)
	require.Empty(t, w.log.String())

	// The holder of a real token learns why.
	require.Equal(t, "wrong_domain", reasonOf(t, w.call(good, "POST", "/groups/7/messages")))
	require.Equal(t, "wrong_action", reasonOf(t, w.call(good, "GET", "/groups/42/members")))
	require.Equal(t, "expired", reasonOf(t, w.post(signed(t, jwtSeed, "at+jwt", with(func(c map[string]any) { c["iat"], c["exp"] = now-10, now })))))

	// Within the bounds it is taken.
	for name, claims := range map[string]map[string]any{
		"several audiences, ours among them": set("aud", []string{"https://other.example", jwtAudience}),
		"a clock that is ahead":              with(func(c map[string]any) { c["iat"], c["exp"] = now+59, now+60 }),
		"no act":                             without("act"),
		"claims that are new":                set("new", []any{1}),
		"expires in a second":                set("exp", now+1),
	} {
		require.Equal(t, 201, w.post(signed(t, jwtSeed, "application/at+jwt", claims)).Code, name) // RFC 9068 §4
	}

	// Another server's Remote, with the same keys by chance, is another audience.
	w.use(w.jwtRemote(func(c *authz.RemoteConfig) { c.Resource = "https://api.example" }))
	require.Equal(t, 401, w.post(good).Code)
}

// The server's own Require takes no JWT: its uses are counted, checked and on the record. Nor do the endpoints.
func TestJWTIsNotForTheServerItself(t *testing.T) {
	w := newJWTWorld(t)
	token := w.Redeem(w.issue())
	require.Equal(t, 201, w.post(token).Code)
	rec := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	w.Require("group:42/message.write")(http.HandlerFunc(fine)).ServeHTTP(rec, r)
	require.Equal(t, 401, rec.Code)
	require.Equal(t, `{"error":"invalid_token","error_description":"the token is not valid"}`, body(rec))
	_, err := w.Use(t.Context(), authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
	require.ErrorIs(t, err, grant.ErrUnknown)

	// With a client of its own a Remote takes both: it asks the server for those that are spent.
	w.use(w.jwtRemote(func(c *authz.RemoteConfig) { c.ClientID, c.Secret = "rs", grant.NewSecret("secret-of-rs") }))
	require.Equal(t, 201, w.post(token).Code)
	counted := w.Token("bookbot", "zhang-san", "group:42")
	require.Equal(t, 201, w.post(counted).Code)
	require.Equal(t, 999, w.left(counted))
	require.Equal(t, 999, w.via.Load().Left)
}

// The JWKS has the public keys and nothing else, for a time; the metadata says where it is.
func TestJWKS(t *testing.T) {
	w := newJWTWorld(t, func(c *authz.Config) {
		c.JWTKeys = []grant.Secret{grant.NewSecret(jwtSeed), grant.NewSecret(jwtOther)}
	})
	get := func(path string) (*http.Response, string) {
		res, err := http.Get(w.URL + path)
		require.NoError(t, err)
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, 200, res.StatusCode)
		return res, string(text)
	}
	var metadata map[string]any
	_, text := get("/.well-known/oauth-authorization-server")
	require.NoError(t, json.Unmarshal([]byte(text), &metadata))
	require.Equal(t, w.URL+"/oauth2/jwks", metadata["jwks_uri"])

	res, text := get("/oauth2/jwks")
	require.Equal(t, "application/jwk-set+json", res.Header.Get("Content-Type"))
	require.Equal(t, "public, max-age=300", res.Header.Get("Cache-Control"))
	require.Equal(t, "nosniff", res.Header.Get("X-Content-Type-Options"))
	var set struct{ Keys []map[string]any }
	require.NoError(t, json.Unmarshal([]byte(text), &set))
	require.Len(t, set.Keys, 2)
	for i, seed := range []string{jwtSeed, jwtOther} {
		public := ed25519.NewKeyFromSeed([]byte(seed)).Public().(ed25519.PublicKey)
		key, err := jose.NewKey(public, "")
		require.NoError(t, err)
		require.Equal(t, map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public),
			"kid": key.Thumbprint(), "alg": "EdDSA", "use": "sig"}, set.Keys[i], "RFC 7638 and 8037; no d")
		require.NotContains(t, text, base64.RawURLEncoding.EncodeToString([]byte(seed)))
	}
	req, err := http.NewRequest("POST", w.URL+"/oauth2/jwks", nil)
	require.NoError(t, err)
	res, err = http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 405, res.StatusCode)

	// Without stateless triggers there is none of it.
	plain := newRemoteWorld(t)
	res, err = http.Get(plain.URL + "/oauth2/jwks")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 404, res.StatusCode)
	plain.use(plain.jwtRemote(nil))
	require.Equal(t, 401, plain.post(w.Redeem(w.issue())).Code, "a server without keys has signed nothing")
}

// The key that is derived is the same on every node, and none of the others.
func TestJWTDerivedKey(t *testing.T) {
	kid := func(key string) string {
		w := newJWTWorld(t, func(c *authz.Config) { c.JWTKeys, c.Key = nil, grant.NewSecret(strings.Repeat(key, 32)) })
		token := w.Redeem(w.issue())
		require.Equal(t, 201, w.post(token).Code)
		head, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
		require.NoError(t, err)
		var said struct{ Kid string }
		require.NoError(t, json.Unmarshal(head, &said))
		return said.Kid
	}
	require.Equal(t, kid("a"), kid("a"))
	require.NotEqual(t, kid("a"), kid("b"))
}

// Other algorithms are for who asks for them, in PEM; the resource server takes what the issuer's key set says.
func TestJWTAlgorithms(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for alg, private := range map[string]any{"EdDSA": ed, "ES256": ec, "RS256": rs} {
		der, err := x509.MarshalPKCS8PrivateKey(private)
		require.NoError(t, err)
		text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		w := newJWTWorld(t, func(c *authz.Config) { c.JWTKeys = []grant.Secret{grant.NewSecret(string(text))} })
		token := w.Redeem(w.issue())
		head, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
		require.NoError(t, err)
		require.Contains(t, string(head), `"alg":"`+alg+`"`)
		require.Equal(t, 201, w.post(token).Code, alg)
	}
}

// What cannot be is said at the start, all of it, and shows no key.
func TestJWTConfig(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(small)
	require.NoError(t, err)
	weak := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	good := func() authz.Config {
		return authz.Config{Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil },
			JWTAudience: jwtAudience, Apps: []authz.App{{ID: "bookbot", Secret: grant.NewSecret("bookbot-secret"), Actions: []string{"message.write"}, RealNames: true}},
			Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "*", Allow: []string{"message.write"}, Stateless: true, Uses: grant.Unlimited, For: time.Minute}}}
	}
	_, err = authz.New(good())
	require.NoError(t, err)
	for want, change := range map[string]func(*authz.Config){
		"stateless: there is no JWTAudience":           func(c *authz.Config) { c.JWTAudience = "" },
		"JWTKeys without a JWTAudience":                func(c *authz.Config) { c.JWTAudience, c.JWTKeys = "", []grant.Secret{grant.NewSecret(jwtSeed)} },
		`JWTAudience: "https://social.example" is not`: func(c *authz.Config) { c.JWTAudience = c.Issuer },
		`JWTAudience: "bookbot" is not`:                func(c *authz.Config) { c.JWTAudience = "bookbot" },
		"JWTKeys[1] is there twice":                    func(c *authz.Config) { c.JWTKeys = []grant.Secret{grant.NewSecret(jwtSeed), grant.NewSecret(jwtSeed)} },
		"JWTKeys[0] has 5 bytes":                       func(c *authz.Config) { c.JWTKeys = []grant.Secret{grant.NewSecret("s3cr3")} },
		"JWTKeys[0] has 0 bytes":                       func(c *authz.Config) { c.JWTKeys = []grant.Secret{{}} },
		"JWTKeys[0] is neither Ed25519":                func(c *authz.Config) { c.JWTKeys = []grant.Secret{grant.NewSecret(weak)} },
		"JWTKeys[0] is not a private key": func(c *authz.Config) {
			c.JWTKeys = []grant.Secret{grant.NewSecret("-----BEGIN PRIVATE KEY-----\nczNjcjN0\n-----END PRIVATE KEY-----\n")}
		},
		"17 keys":            func(c *authz.Config) { c.JWTKeys = make([]grant.Secret, 17) },
		"sees no real names": func(c *authz.Config) { c.Apps[0].RealNames = false },
	} {
		c := good()
		change(&c)
		_, err := authz.New(c)
		require.ErrorContains(t, err, want)
		for _, secret := range []string{"s3cr3", jwtSeed, "czNjcjN0", weak[40:100]} {
			require.NotContains(t, err.Error(), secret)
		}
	}
	// Nor can a change make one.
	c := good()
	c.JWTAudience, c.Triggers[0].Stateless = "", false
	az, err := authz.New(c)
	require.NoError(t, err)
	err = az.Change(t.Context(), authz.Change{Triggers: good().Triggers, By: "li-si"})
	require.ErrorIs(t, err, grant.ErrInvalid)
	require.ErrorContains(t, err, "JWTAudience")
}

// An endpoint without a signer leaves a stateless code as it was, and so does one whose app sees the account no more.
func TestJWTNobodySigns(t *testing.T) {
	w := newJWTWorld(t)
	clients, err := authz.NewClients([]authz.App{{ID: "bookbot", Secret: grant.NewSecret("secret-of-bookbot")}})
	require.NoError(t, err)
	g := w.issue()
	redeem := func() *httptest.ResponseRecorder {
		return serve(&authz.TokenEndpoint{Engine: w.Engine(), Clients: clients}, endpointRequest("POST", "/", "grant_type="+authz.GrantTypeOperation+"&code="+g.Code.Reveal(),
			"Authorization", endpointBasic("bookbot", "secret-of-bookbot")))
	}
	endpointRefused(t, redeem(), 500, "server_error")
	require.Equal(t, 201, w.post(w.Redeem(g)).Code)

	g = w.issue()
	require.NoError(t, w.Change(t.Context(), authz.Change{RemoveTriggers: []string{"stateless"}, By: "li-si",
		Apps: []authz.App{{ID: "bookbot", Actions: []string{"message.write", "member.read"}}}}))
	_, err = w.Client("bookbot").Redeem(t.Context(), app.NewSecret(g.Code.Reveal()))
	require.Error(t, err)
}

// Keys rotate with overlap: what the old one signed is good until it expires, and at no moment is a token refused.
func TestJWTRotation(t *testing.T) {
	w := newJWTWorld(t)
	keys := func(seeds ...string) func(*http.Request) *http.Response {
		var secrets []grant.Secret
		for _, s := range seeds {
			secrets = append(secrets, grant.NewSecret(s))
		}
		signer, err := authz.NewJWTSigner(w.URL, jwtAudience, secrets)
		require.NoError(t, err)
		return func(r *http.Request) *http.Response {
			return serve(signer, r).Result()
		}
	}
	fresh := func(seed string) string {
		now := w.Clock.Now().Unix()
		c := w.claims()
		c["iat"], c["exp"] = now, now+300
		return signed(t, seed, "at+jwt", c)
	}
	w.line.answer = keys(jwtSeed)
	old := fresh(jwtSeed)
	require.Equal(t, 201, w.post(old).Code)
	w.line.answer = keys(jwtOther, jwtSeed) // here the signing key changed without the time that it should have
	w.Clock.Advance(31 * time.Second)
	w.line.lose(0, 0)
	require.Equal(t, 201, w.post(fresh(jwtOther)).Code, "an unknown kid is asked for")
	require.Equal(t, 201, w.post(old).Code)
	require.Equal(t, 1, w.line.asked)

	// The old one is removed; when the keys are asked for again, what it signed is no good.
	w.line.answer = keys(jwtOther)
	late := fresh(jwtSeed)
	require.Equal(t, 201, w.post(late).Code, "not known here yet")
	w.Clock.Advance(4 * time.Minute)
	late = fresh(jwtSeed)
	require.Equal(t, 201, w.post(late).Code, "max-age is 300")
	w.Clock.Advance(time.Minute)
	require.Equal(t, 401, w.post(late).Code)
	require.Equal(t, 201, w.post(fresh(jwtOther)).Code)
}

// Whatever strangers send, the issuer is asked for its keys at most once in 30 s, and by one for all.
func TestRemoteKeysAreAskedForOnce(t *testing.T) {
	w := newJWTWorld(t)
	token, forged := w.Redeem(w.issue()), signed(t, jwtOther, "at+jwt", w.claims())
	w.line.lose(0, 0)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if code := w.post(token).Code; code != 201 {
				t.Errorf("%d", code)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, w.line.asked)
	for range 64 {
		wg.Go(func() {
			if code := w.post(forged).Code; code != 401 {
				t.Errorf("%d", code)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, w.line.asked, "they were fetched just now")
	w.Clock.Advance(30 * time.Second)
	for range 64 {
		wg.Go(func() { w.post(forged) })
	}
	wg.Wait()
	require.Equal(t, 2, w.line.asked)
	for range 9 {
		w.Clock.Advance(10 * time.Second)
		w.post(forged)
		w.post("a.b.c")
	}
	require.Equal(t, 5, w.line.asked)
	require.Equal(t, 201, w.post(token).Code)
}

// While the issuer does not answer, the keys that were known are good for ten minutes more, and then nothing is let through.
func TestRemoteKeysWhileTheIssuerIsAway(t *testing.T) {
	w := newJWTWorld(t)
	token := func() string {
		now := w.Clock.Now().Unix()
		return signed(t, jwtSeed, "at+jwt", map[string]any{"iss": w.URL, "aud": jwtAudience, "sub": "zhang-san", "client_id": "bookbot", "scope": "group:42/message.write",
			"iat": now, "exp": now + 300, "jti": "1", "grant_id": "g", "domain": "group:42", "operation": "mention", "event": "m1"})
	}
	w.line.answer = func(*http.Request) *http.Response { return &http.Response{StatusCode: 503, Body: http.NoBody} }
	rec := w.post(token())
	require.Equal(t, 503, rec.Code, "there never were keys")
	require.Equal(t, "1", rec.Header().Get("Retry-After"))
	w.line.lose(0, 0)
	for range 5 {
		require.Equal(t, 503, w.post(token()).Code)
	}
	require.Zero(t, w.line.asked, "a server that is away is not asked at once again")
	w.line.answer = nil
	w.Clock.Advance(2 * time.Second)
	require.Equal(t, 201, w.post(token()).Code)

	w.Clock.Advance(5 * time.Minute)
	w.line.answer = func(*http.Request) *http.Response { return &http.Response{StatusCode: 500, Body: http.NoBody} }
	require.Equal(t, 201, w.post(token()).Code)
	w.Clock.Advance(10*time.Minute - time.Second)
	require.Equal(t, 201, w.post(token()).Code)
	w.Clock.Advance(time.Second)
	require.Equal(t, 503, w.post(token()).Code)
	require.Contains(t, w.log.String(), "/oauth2/jwks answered 500")
	w.line.answer = nil
	w.Clock.Advance(2 * time.Second)
	require.Equal(t, 201, w.post(token()).Code)
}

// An issuer that had keys and seems to have none is one that a proxy leads past: what was known is good for ten minutes more, as while it
// does not answer. Then it is believed.
func TestRemoteKeysThatAreGone(t *testing.T) {
	w := newJWTWorld(t)
	token := func() string {
		now := w.Clock.Now().Unix()
		return signed(t, jwtSeed, "at+jwt", map[string]any{"iss": w.URL, "aud": jwtAudience, "sub": "zhang-san", "client_id": "bookbot", "scope": "group:42/message.write",
			"iat": now, "exp": now + 300, "jti": "1", "grant_id": "g", "domain": "group:42", "operation": "mention", "event": "m1"})
	}
	require.Equal(t, 201, w.post(token()).Code)
	w.line.answer = func(*http.Request) *http.Response { return &http.Response{StatusCode: 404, Body: http.NoBody} }
	w.Clock.Advance(5 * time.Minute)
	require.Equal(t, 201, w.post(token()).Code)
	w.Clock.Advance(10*time.Minute - time.Second)
	require.Equal(t, 201, w.post(token()).Code)
	w.Clock.Advance(3 * time.Second)
	require.Equal(t, 401, w.post(token()).Code)
	w.line.answer = nil
	w.Clock.Advance(30 * time.Second)
	require.Equal(t, 201, w.post(token()).Code)
}

// Keys that are no keys let nothing through, and none of them leads anywhere else.
func TestRemoteKeysMalformed(t *testing.T) {
	private, err := json.Marshal(map[string]any{"keys": []any{map[string]any{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA",
		"x": base64.RawURLEncoding.EncodeToString(ed25519.NewKeyFromSeed([]byte(jwtSeed)).Public().(ed25519.PublicKey)), "d": base64.RawURLEncoding.EncodeToString([]byte(jwtSeed))}}})
	require.NoError(t, err)
	secret := `{"keys":[{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}]}`
	for name, answer := range map[string]struct {
		status int
		body   string
	}{
		"none": {200, `{"keys":[]}`}, "no JSON": {200, `<html>`}, "empty": {200, ``}, "private parts": {200, string(private)}, "a shared secret": {200, secret},
		"huge": {200, `{"keys":[` + strings.Repeat(" ", 70000) + `]}`}, "a redirect": {302, ``}, "not for us": {401, ``},
	} {
		w := newJWTWorld(t)
		token := w.Redeem(w.issue())
		w.line.answer = func(*http.Request) *http.Response {
			return &http.Response{StatusCode: answer.status, Header: http.Header{"Location": {w.URL + "/oauth2/jwks"}}, Body: io.NopCloser(strings.NewReader(answer.body))}
		}
		w.line.lose(0, 0)
		require.Equal(t, 503, w.post(token).Code, name)
		require.Equal(t, 1, w.line.asked, name)
		require.NotContains(t, w.log.String(), "c2VjcmV0")
	}
}

// Cache-Control is heeded between a minute and an hour.
func TestRemoteKeysCacheControl(t *testing.T) {
	for header, life := range map[string]time.Duration{
		"": 5 * time.Minute, "public, max-age=300": 5 * time.Minute, "max-age=120": 2 * time.Minute, "MAX-AGE=\"120\"": 2 * time.Minute, "max-age=0": time.Minute,
		"no-store": time.Minute, "max-age=600, no-cache": time.Minute, "max-age=99999": time.Hour, "max-age=-1": 5 * time.Minute, "max-age=x": 5 * time.Minute,
		"max-age=99999999999999999999": 5 * time.Minute, ", =,;": 5 * time.Minute,
	} {
		w := newJWTWorld(t)
		claims := w.claims()
		token := func() string {
			claims := maps.Clone(claims)
			claims["iat"], claims["exp"] = w.Clock.Now().Unix(), w.Clock.Now().Unix()+60
			return signed(t, jwtSeed, "at+jwt", claims)
		}
		signer, err := authz.NewJWTSigner(w.URL, jwtAudience, []grant.Secret{grant.NewSecret(jwtSeed)})
		require.NoError(t, err)
		w.line.answer = func(r *http.Request) *http.Response {
			res := serve(signer, r).Result()
			res.Header.Del("Cache-Control")
			if header != "" {
				res.Header.Set("Cache-Control", header)
			}
			return res
		}
		w.line.lose(0, 0)
		require.Equal(t, 201, w.post(token()).Code)
		w.Clock.Advance(life - time.Second)
		require.Equal(t, 201, w.post(token()).Code)
		require.Equal(t, 1, w.line.asked, header)
		w.Clock.Advance(time.Second)
		require.Equal(t, 201, w.post(token()).Code)
		require.Equal(t, 2, w.line.asked, header)
	}
}

// P6: a signer prints what it is for, and no key.
func TestJWTSignerShowsNoKey(t *testing.T) {
	signer, err := authz.NewJWTSigner("https://social.example", jwtAudience, []grant.Secret{grant.NewSecret(jwtSeed)})
	require.NoError(t, err)
	require.Equal(t, "signer for "+jwtAudience, fmt.Sprintf("%+v", signer))
	require.NotContains(t, fmt.Sprintf("%#v %s", signer, signer), jwtSeed)
	_, err = authz.NewJWTSigner("https://social.example", jwtAudience, nil)
	require.Error(t, err)
	require.False(t, errors.Is(err, grant.ErrInvalid))
}
