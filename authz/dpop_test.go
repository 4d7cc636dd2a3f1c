package authz_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
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

// A proofWorld is a server with apps that bind their tokens: "may" can, "must" has to, "known" by its registered key.
type proofWorld struct {
	*keyWorld
	proofs *jose.Signer
	acted  atomic.Int64
}

func newProofWorld(t testing.TB, change ...func(*authz.Config)) *proofWorld {
	p := &proofWorld{proofs: signerOf(t, clientKey("p"), "")}
	known := jwksOf(t, p.proofs)
	secret, may := grant.NewSecret("12345678"), []string{"message.write"}
	p.keyWorld = newKeyWorld(t, append([]func(*authz.Config){func(c *authz.Config) {
		c.Apps = []authz.App{
			{ID: "may", Secret: secret, Actions: may}, {ID: "must", Secret: secret, Actions: may, KeyBound: true},
			{ID: "known", Secret: secret, Actions: may, KeyBound: true, JWKS: known}, {ID: "rs", Secret: secret, Introspect: true},
		}
		c.Triggers = nil
		for _, app := range []string{"may", "must", "known"} {
			c.Triggers = append(c.Triggers, grant.Trigger{App: app, On: grant.Mention, In: "group:*", Allow: may, For: 10 * time.Minute, Uses: 5, RedeemWithin: 10 * time.Minute, Deliver: grant.Poll})
		}
	}}, change...)...)
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { p.acted.Add(1); w.WriteHeader(http.StatusNoContent) })
	p.mux.Handle("POST /groups/{group}/messages", p.az.Require("group:{group}/message.write")(ok))
	return p
}

const proofPath = "/groups/42/messages"

func (p *proofWorld) claims(method, path, nonce, token string, more map[string]any) map[string]any {
	c := map[string]any{"htm": method, "htu": endpointIssuer + path, "jti": fmt.Sprint("p", p.serial.Add(1)), "iat": p.now().Unix(), "nonce": nonce}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		c["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	maps.Copy(c, more)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (p *proofWorld) proof(path, nonce, token string, more map[string]any) string {
	p.t.Helper()
	text, err := p.proofs.SignEmbedded("dpop+jwt", p.claims("POST", path, nonce, token, more))
	require.NoError(p.t, err)
	return text
}

func (p *proofWorld) code(app string) string {
	p.t.Helper()
	ev := bubbleMention(fmt.Sprint("m", p.serial.Add(1)))
	ev.App = app
	issued, err := p.az.Emit(context.Background(), ev)
	require.NoError(p.t, err)
	return issued[0].Code.Reveal()
}

func (p *proofWorld) redeem(app, code string, header ...string) *httptest.ResponseRecorder {
	form := url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {code}}
	return p.do(endpointRequest("POST", "/oauth2/token", form.Encode(), append(header, "Authorization", endpointBasic(app, "12345678"))...))
}

func (p *proofWorld) nonce() string {
	p.t.Helper()
	rec := p.redeem("may", "x", "DPoP", p.proof("/oauth2/token", "", "", nil))
	require.NotEmpty(p.t, rec.Header().Get("DPoP-Nonce"))
	return rec.Header().Get("DPoP-Nonce")
}

// bound is a token that is bound to the world's key.
func (p *proofWorld) bound(app string) string {
	p.t.Helper()
	rec := p.redeem(app, p.code(app), "DPoP", p.proof("/oauth2/token", p.nonce(), "", nil))
	require.Equal(p.t, 200, rec.Code, rec.Body)
	body := endpointJSON(p.t, rec)
	require.Equal(p.t, "DPoP", body["token_type"])
	return body["access_token"].(string)
}

func (p *proofWorld) call(authorization string, header ...string) *httptest.ResponseRecorder {
	return p.do(endpointRequest("POST", proofPath, "", append(header, "Authorization", authorization)...))
}

// RFC 9449 §5, §7, §8: a code is redeemed with a proof, after a nonce was asked for, and the token acts with proofs alone.
func TestDPoP(t *testing.T) {
	p := newProofWorld(t)
	code := p.code("must")
	rec := p.redeem("must", code)
	endpointRefused(t, rec, 400, "invalid_dpop_proof")
	nonce := rec.Header().Get("DPoP-Nonce")
	require.NotEmpty(t, nonce)
	rec = p.redeem("must", code, "DPoP", p.proof("/oauth2/token", "", "", nil))
	endpointRefused(t, rec, 400, "use_dpop_nonce")
	require.Equal(t, nonce, rec.Header().Get("DPoP-Nonce"))
	rec = p.redeem("must", code, "DPoP", p.proof("/oauth2/token", nonce, "", nil))
	require.Equal(t, 200, rec.Code, rec.Body)
	require.Empty(t, rec.Header().Get("DPoP-Nonce"), "the one it has is good")
	token := endpointJSON(t, rec)["access_token"].(string)

	rec = p.call("DPoP "+token, "DPoP", p.proof(proofPath, nonce, token, nil))
	require.Equal(t, 204, rec.Code, rec.Body)
	rec = p.call("dpop  "+token, "DPoP", p.proof(proofPath+"?q=1#f", nonce, token, nil))
	require.Equal(t, 204, rec.Code, "the scheme in any case, query and fragment do not count: %s", rec.Body)
	require.Equal(t, int64(2), p.acted.Load())

	rec = p.call("Bearer " + token)
	require.Equal(t, 401, rec.Code, "a bound token as Bearer")
	require.Equal(t, "invalid_token", endpointJSON(t, rec)["error"])
	rec = p.call("Bearer "+token, "DPoP", p.proof(proofPath, nonce, token, nil))
	require.Equal(t, 401, rec.Code, "with a proof as well")
	rec = p.redeem("may", p.code("may"))
	require.Equal(t, "Bearer", endpointJSON(t, rec)["token_type"])
	unbound := endpointJSON(t, rec)["access_token"].(string)
	rec = p.call("DPoP "+unbound, "DPoP", p.proof(proofPath, nonce, unbound, nil))
	endpointRefused(t, rec, 401, "invalid_token")
	require.Equal(t, 204, p.call("Bearer "+unbound).Code)

	rec = p.do(endpointRequest("POST", "/oauth2/introspect", url.Values{"token": {token}}.Encode(), "Authorization", endpointBasic("rs", "12345678")))
	body := endpointJSON(t, rec)
	require.Equal(t, "DPoP", body["token_type"])
	require.Equal(t, map[string]any{"jkt": p.proofs.Key().Thumbprint()}, body["cnf"])
	require.EqualValues(t, 3, body["uses_left"], "what was refused has spent nothing")
	rec = p.do(endpointRequest("POST", "/oauth2/introspect", url.Values{"token": {unbound}}.Encode(), "Authorization", endpointBasic("rs", "12345678")))
	require.NotContains(t, endpointJSON(t, rec), "cnf")

	// A retry with an Idempotency-Key brings a proof of its own, and spends nothing.
	for range 2 {
		rec = p.call("DPoP "+token, "DPoP", p.proof(proofPath, nonce, token, nil), "Idempotency-Key", "one")
		require.Equal(t, 204, rec.Code, rec.Body)
	}
	require.Equal(t, int64(4), p.acted.Load())
	rec = p.call("DPoP " + token[:len(token)-4] + "AAAA")
	require.Equal(t, 401, rec.Code, "a forgery needs no proof to be refused")
	require.Contains(t, rec.Header().Get("WWW-Authenticate"), `DPoP realm="https://social.example", error="invalid_token"`)
	require.Contains(t, rec.Header().Get("WWW-Authenticate"), `algs="EdDSA Ed25519 ES256 RS256"`)
}

// RFC 9449 §4.3, at the token endpoint (400) and where a token is used (401 with a challenge). Nothing is spent by it.
func TestDPoPRefuses(t *testing.T) {
	p := newProofWorld(t)
	nonce, token, code := p.nonce(), p.bound("must"), p.code("must")
	now := p.now().Unix()
	other := signerOf(t, clientKey("q"), "")
	for name, c := range map[string]struct {
		more      map[string]any
		typ, code string
		by        *jose.Signer
	}{
		"another method":  {more: map[string]any{"htm": "GET"}},
		"method in lower": {more: map[string]any{"htm": "post"}},
		"no method":       {more: map[string]any{"htm": nil}},
		"another path":    {more: map[string]any{"htu": endpointIssuer + "/other"}},
		"another host":    {more: map[string]any{"htu": "https://other.example" + proofPath}},
		"another scheme":  {more: map[string]any{"htu": "http://social.example" + proofPath}},
		"another port":    {more: map[string]any{"htu": "https://social.example:8443" + proofPath}},
		"a path alone":    {more: map[string]any{"htu": proofPath}},
		"htu a number":    {more: map[string]any{"htu": 1}},
		"no htu":          {more: map[string]any{"htu": nil}},
		"no jti":          {more: map[string]any{"jti": nil}},
		"a jti too long":  {more: map[string]any{"jti": strings.Repeat("j", 257)}},
		"no iat":          {more: map[string]any{"iat": nil}},
		"too old":         {more: map[string]any{"iat": now - 301}},
		"to come":         {more: map[string]any{"iat": now + 301}},
		"expired":         {more: map[string]any{"exp": now}},
		"not yet good":    {more: map[string]any{"nbf": now + 301}},
		"an access token": {typ: "at+jwt"},
		"a plain JWT":     {typ: "JWT"},
		"no nonce":        {more: map[string]any{"nonce": nil}, code: "use_dpop_nonce"},
		"nonce made up":   {more: map[string]any{"nonce": "AAAAAAAAAAAAAAAAAAAAAAAAAAA"}, code: "use_dpop_nonce"},
		"nonce a number":  {more: map[string]any{"nonce": 1}},
		"no type":         {typ: "none"},
	} {
		t.Run(name, func(t *testing.T) {
			code2, typ := c.code, "dpop+jwt"
			if code2 == "" {
				code2 = "invalid_dpop_proof"
			}
			if c.typ != "" {
				typ = strings.TrimPrefix(c.typ, "none")
			}
			text, err := p.proofs.SignEmbedded(typ, p.claims("POST", "/oauth2/token", nonce, "", c.more))
			require.NoError(t, err)
			endpointRefused(t, p.redeem("must", code, "DPoP", text), 400, code2)
			text, err = p.proofs.SignEmbedded(typ, p.claims("POST", proofPath, nonce, token, c.more))
			require.NoError(t, err)
			rec := p.call("DPoP "+token, "DPoP", text)
			endpointRefused(t, rec, 401, code2)
			require.Contains(t, rec.Header().Get("WWW-Authenticate"), `DPoP realm="https://social.example", error="`+code2+`"`)
		})
	}
	good := p.proof(proofPath, nonce, token, nil)
	for name, c := range map[string]struct {
		header []string
		code   string
	}{
		"none":                   {nil, "invalid_dpop_proof"},
		"two":                    {[]string{"DPoP", good, "DPoP", p.proof(proofPath, nonce, token, nil)}, "invalid_dpop_proof"},
		"not a JWT":              {[]string{"DPoP", "x"}, "invalid_dpop_proof"},
		"of another token":       {[]string{"DPoP", p.proof(proofPath, nonce, token+"x", nil)}, "invalid_dpop_proof"},
		"of no token":            {[]string{"DPoP", p.proof(proofPath, nonce, "", nil)}, "invalid_dpop_proof"},
		"kid instead of key":     {[]string{"DPoP", mustSign(t, p.proofs, p.claims("POST", proofPath, nonce, token, nil))}, "invalid_dpop_proof"},
		"by another key":         {[]string{"DPoP", mustEmbed(t, other, p.claims("POST", proofPath, nonce, token, nil))}, "invalid_token"},
		"for the token endpoint": {[]string{"DPoP", p.proof("/oauth2/token", nonce, token, nil)}, "invalid_dpop_proof"},
	} {
		t.Run(name, func(t *testing.T) {
			endpointRefused(t, p.call("DPoP "+token, c.header...), 401, c.code)
		})
	}
	require.Zero(t, p.acted.Load())
	require.Equal(t, 204, p.call("DPoP "+token, "DPoP", good).Code)
	rec := p.call("DPoP "+token, "DPoP", good)
	require.Contains(t, endpointRefused(t, rec, 401, "invalid_dpop_proof"), "used before")
	require.Equal(t, int64(1), p.acted.Load())

	// At the token endpoint a proof is taken once too, and a registered key is the only one that will do.
	text := p.proof("/oauth2/token", nonce, "", nil)
	endpointRefused(t, p.redeem("must", "bhsc_x", "DPoP", text), 400, "invalid_grant")
	require.Contains(t, endpointRefused(t, p.redeem("must", code, "DPoP", text), 400, "invalid_dpop_proof"), "used before")
	stolen := p.code("known")
	endpointRefused(t, p.redeem("known", stolen, "DPoP", mustEmbed(t, other, p.claims("POST", "/oauth2/token", nonce, "", nil))), 400, "invalid_dpop_proof")
	endpointRefused(t, p.redeem("known", stolen), 400, "invalid_dpop_proof")
	require.Equal(t, 200, p.redeem("known", stolen, "DPoP", p.proof("/oauth2/token", nonce, "", nil)).Code)
}

func mustSign(t testing.TB, s *jose.Signer, claims any) string {
	text, err := s.Sign("dpop+jwt", claims)
	require.NoError(t, err)
	return text
}

func mustEmbed(t testing.TB, s *jose.Signer, claims any) string {
	text, err := s.SignEmbedded("dpop+jwt", claims)
	require.NoError(t, err)
	return text
}

// A nonce is good on every server with the same Key, for five minutes at least and six at most, and replaced in time.
func TestDPoPNonce(t *testing.T) {
	p := newProofWorld(t)
	two := newProofWorld(t, func(c *authz.Config) { c.Store = p.store })
	stranger := newProofWorld(t, func(c *authz.Config) { c.Key = grant.NewSecret(strings.Repeat("z", 32)) })
	two.serial.Store(1000) // other events, other proofs
	nonce := p.nonce()
	require.Equal(t, nonce, two.nonce())
	require.NotEqual(t, nonce, stranger.nonce())
	try := func(w *proofWorld, nonce string) *httptest.ResponseRecorder {
		return w.redeem("must", w.code("must"), "DPoP", w.proof("/oauth2/token", nonce, "", nil))
	}
	require.Equal(t, []int{200, 200, 400}, []int{try(p, nonce).Code, try(two, nonce).Code, try(stranger, nonce).Code})
	p.ahead.Store(int64(time.Minute))
	two.ahead.Store(-int64(time.Minute) / 2)
	rec := try(p, nonce)
	require.Equal(t, 200, rec.Code)
	next := rec.Header().Get("DPoP-Nonce")
	require.NotEmpty(t, next, "another one is offered with the answer")
	require.NotEqual(t, nonce, next)
	require.Equal(t, 200, try(two, nonce).Code, "of a server whose clock is ahead")
	p.ahead.Store(int64(6*time.Minute - time.Second))
	require.Equal(t, 200, try(p, nonce).Code)
	p.ahead.Store(int64(6 * time.Minute))
	endpointRefused(t, try(p, nonce), 400, "use_dpop_nonce")
}

// The Host header says nothing: the server knows its own name, and the path is what came over the wire.
func TestDPoPBehindAProxy(t *testing.T) {
	p := newProofWorld(t)
	nonce, token := p.nonce(), p.bound("must")
	r := endpointRequest("POST", proofPath, "", "Authorization", "DPoP "+token, "DPoP", p.proof(proofPath, nonce, token, nil))
	r.Host = "10.0.0.7:8080"
	require.Equal(t, 204, p.do(r).Code)
	r = endpointRequest("POST", proofPath, "", "Authorization", "DPoP "+token, "DPoP", p.proof("", nonce, token, map[string]any{"htu": "http://10.0.0.7:8080" + proofPath}))
	r.Host = "10.0.0.7:8080"
	require.Equal(t, 401, p.do(r).Code)
	outer := http.NewServeMux()
	outer.Handle("/api/", http.StripPrefix("/api", p.mux))
	rec := httptest.NewRecorder()
	outer.ServeHTTP(rec, endpointRequest("POST", "/api"+proofPath, "", "Authorization", "DPoP "+token, "DPoP", p.proof("/api"+proofPath, nonce, token, nil)))
	require.Equal(t, 204, rec.Code, rec.Body)
	for _, htu := range []string{"HTTPS://SOCIAL.example:443" + proofPath, "https://social.example/groups/%34%32/messages", "https://social.example/x/../groups/./42/messages"} {
		rec := p.call("DPoP "+token, "DPoP", p.proof("", nonce, token, map[string]any{"htu": htu}))
		require.Equal(t, 204, rec.Code, "%s: %s", htu, rec.Body)
	}
}

// 64 requests with one proof, on two servers of every store: at the API one acts, at the token endpoint one redeems.
func TestDPoPOnce(t *testing.T) {
	stores.Everywhere(t, func(t *testing.T, s stores.Maker) {
		node := s.New(t)
		var servers [2]*proofWorld
		for i := range servers {
			st := node()
			servers[i] = newProofWorld(t, func(c *authz.Config) { c.Store = st })
		}
		p := servers[0]
		nonce, token := p.nonce(), p.bound("may")
		race := func(f func(*proofWorld) int) map[int]int {
			var mu sync.Mutex
			var wg sync.WaitGroup
			got := map[int]int{}
			for i := range 64 {
				wg.Go(func() {
					code := f(servers[i%2])
					mu.Lock()
					defer mu.Unlock()
					got[code]++
				})
			}
			wg.Wait()
			return got
		}
		text := p.proof(proofPath, nonce, token, nil)
		require.Equal(t, map[int]int{204: 1, 401: 63}, race(func(w *proofWorld) int { return w.call("DPoP "+token, "DPoP", text).Code }))
		require.Equal(t, int64(1), servers[0].acted.Load()+servers[1].acted.Load())
		text = p.proof("/oauth2/token", nonce, "", nil)
		codes := make(chan string, 64)
		for range 64 {
			codes <- p.code("may")
		}
		require.Equal(t, map[int]int{200: 1, 400: 63}, race(func(w *proofWorld) int { return w.redeem("may", <-codes, "DPoP", text).Code }))
	})
}

// An app of ours binds its tokens, and brings the nonce that it is asked for.
func TestDPoPByTheApp(t *testing.T) {
	key, err := app.NewKey(clientKey("a"), "")
	require.NoError(t, err)
	s := authztest.New(t, authz.Config{
		Apps:     []authz.App{{ID: "must", JWKS: key.JWKS(), Actions: []string{"message.write"}, KeyBound: true}},
		Triggers: []grant.Trigger{{App: "must", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: time.Hour, Uses: 5, Deliver: grant.Poll}},
	})
	s.Handle("POST /groups/{group}/messages", s.Require("group:{group}/message.write")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})))
	client := s.Client("must")
	client.Key, client.DPoP = key, key
	s.MustEmit(bubbleMentionOf("must"))
	waiting, err := client.Grants(t.Context(), 0)
	require.NoError(t, err)
	token, err := client.Redeem(t.Context(), waiting[0].Code)
	require.NoError(t, err)
	require.Equal(t, "DPoP", token.Type)
	require.Equal(t, "DPoP", token.OAuth2().TokenType)
	act := func(body io.Reader) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/groups/42/messages?x=1", body)
		require.NoError(t, err)
		resp, err := client.Do(req, token)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(text), nil
	}
	text, err := act(strings.NewReader("hello"))
	require.NoError(t, err)
	require.Equal(t, "hello", text)
	s.Clock.Advance(10 * time.Minute) // the nonce is too old
	text, err = act(strings.NewReader("again"))
	require.NoError(t, err)
	require.Equal(t, "again", text)
	s.Clock.Advance(10 * time.Minute)
	_, err = act(io.MultiReader(strings.NewReader("once"))) // which cannot be sent again
	var refused *app.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "use_dpop_nonce", refused.Code)
	text, err = act(io.MultiReader(strings.NewReader("once")))
	require.NoError(t, err)
	require.Equal(t, "once", text)

	thief := *client
	thief.DPoP, err = app.NewKey(clientKey("z"), "")
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/groups/42/messages", nil)
	require.NoError(t, err)
	_, err = thief.Do(req, token)
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "invalid_token", refused.Code)
	thief.DPoP = app.Key{}
	_, err = thief.Do(req, token)
	require.ErrorContains(t, err, "without its key")
}

func TestKeyBoundIsConfigured(t *testing.T) {
	_, err := authz.New(authz.Config{Issuer: endpointIssuer, Permit: func(context.Context, grant.Access) error { return nil }, Store: store.NewMemory(), Key: grant.NewSecret(strings.Repeat("k", 32)),
		Apps:     []authz.App{{ID: "must", Secret: grant.NewSecret("12345678"), Actions: []string{"message.write"}, KeyBound: true}},
		Triggers: []grant.Trigger{{App: "must", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: grant.Unlimited, For: time.Minute, Stateless: true}}})
	require.ErrorContains(t, err, "bound to a key")
}

// RFC 9449 §5: what an exchange gives is bound to the key that was proved there, and an app that must have a key gets
// nothing without one.
func TestDPoPExchange(t *testing.T) {
	p := newProofWorld(t, func(c *authz.Config) { c.Triggers[0].Delegates = []string{"must", "known"} })
	rec := p.redeem("may", p.code("may"))
	require.Equal(t, 200, rec.Code, rec.Body)
	parent := endpointJSON(t, rec)["access_token"].(string)
	exchange := func(app string, header ...string) *httptest.ResponseRecorder {
		form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {parent}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"}}
		return p.do(endpointRequest("POST", "/oauth2/token", form.Encode(), append(header, "Authorization", endpointBasic(app, "12345678"))...))
	}
	nonce := p.nonce()
	proof := func() []string { return []string{"DPoP", p.proof("/oauth2/token", nonce, "", nil)} }

	for _, app := range []string{"must", "known"} {
		rec = exchange(app)
		endpointRefused(t, rec, 400, "invalid_dpop_proof")
		rec = exchange(app, proof()...)
		require.Equal(t, 200, rec.Code, rec.Body)
		body := endpointJSON(t, rec)
		require.Equal(t, "DPoP", body["token_type"])
		child := body["access_token"].(string)
		require.Equal(t, 401, p.call("Bearer "+child).Code)
		rec = p.call("DPoP "+child, "DPoP", p.proof(proofPath, nonce, child, nil))
		require.Equal(t, 204, rec.Code, rec.Body)
		rec = p.do(endpointRequest("POST", "/oauth2/introspect", url.Values{"token": {child}}.Encode(), "Authorization", endpointBasic("rs", "12345678")))
		require.Equal(t, map[string]any{"jkt": p.proofs.Key().Thumbprint()}, endpointJSON(t, rec)["cnf"])
	}
	// A key that "known" is not registered with.
	p.proofs = signerOf(t, clientKey("q"), "")
	endpointRefused(t, exchange("known", proof()...), 400, "invalid_dpop_proof")
	// Who need not prove anything gets a token for its bearer, and another's proof is taken once.
	rec = exchange("may")
	require.Equal(t, "Bearer", endpointJSON(t, rec)["token_type"])
	once := proof()
	require.Equal(t, 200, exchange("may", once...).Code)
	endpointRefused(t, exchange("may", once...), 400, "invalid_dpop_proof")
	require.Equal(t, int64(2), p.acted.Load())
}
