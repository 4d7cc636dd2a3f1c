package authz_test

import (
	"context"
	"encoding/base64"
	"fmt"
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
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// exchange redeems a code as probe; more is name, value.
func (w *endpointWorld) exchange(code string, more ...string) *httptest.ResponseRecorder {
	return w.exchangeAs("probe", endpointSecret, code, more...)
}

func (w *endpointWorld) exchangeAs(id, secret, code string, more ...string) *httptest.ResponseRecorder {
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {signInRedirect}, "code_verifier": {signInVerifier}}
	for i := 0; i < len(more); i += 2 {
		if form.Set(more[i], more[i+1]); more[i+1] == "-" {
			form.Del(more[i])
		}
	}
	return w.post("/oauth2/token", id, secret, form)
}

func (w *endpointWorld) refresh(token string, more ...string) *httptest.ResponseRecorder {
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return w.post("/oauth2/token", "probe", endpointSecret, form)
}

// signedIn is the whole way: an access token and a refresh token.
func (w *endpointWorld) signedIn(account string, change ...string) (access, refresh string) {
	w.t.Helper()
	return w.tokens(w.exchange(w.consent(account, change...)))
}

func (w *endpointWorld) tokens(rec *httptest.ResponseRecorder) (access, refresh string) {
	w.t.Helper()
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	body := endpointJSON(w.t, rec)
	return body["access_token"].(string), body["refresh_token"].(string)
}

// live asks as the app whether an access token is good.
func (w *endpointWorld) live(access string) bool {
	w.t.Helper()
	rec := w.post("/oauth2/introspect", "probe", endpointSecret, url.Values{"token": {access}})
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	body := endpointJSON(w.t, rec)
	if body["active"] == false {
		require.Len(w.t, body, 1)
	}
	return body["active"] == true
}

func TestSignIn(t *testing.T) {
	w := newEndpointWorld(t)
	sub := w.engine.Name("probe", "zhang-san")
	rec := w.exchange(w.consent("zhang-san"))
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	body := endpointJSON(t, rec)
	access, refresh := body["access_token"].(string), body["refresh_token"].(string)
	require.Equal(t, map[string]any{"access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": 3600.0, "sub": sub}, body)
	require.Regexp(t, `^bhsa_[A-Za-z0-9_-]{100,}$`, access)
	require.Regexp(t, `^bhsr_[A-Za-z0-9_-]{100,}$`, refresh)
	require.NotEqual(t, "zhang-san", sub)

	now := float64(w.now().Unix())
	introspected := func(id, secret, token string) map[string]any {
		return endpointJSON(t, w.post("/oauth2/introspect", id, secret, url.Values{"token": {token}}))
	}
	want := map[string]any{"active": true, "client_id": "probe", "token_type": "Bearer", "exp": now + 3600, "iat": now, "sub": sub, "iss": endpointIssuer}
	require.Equal(t, want, introspected("probe", endpointSecret, access))
	want["username"] = "zhang-san"
	require.Equal(t, want, introspected("rs", "rs-secret", access))
	require.Equal(t, map[string]any{"active": false}, introspected("other", "other-secret", access), "an unauthorised caller learns nothing")
	for _, dead := range []string{refresh, w.consent("zhang-san"), access[:len(access)-1], access + "A", "bhsa_", "bhsr_" + access[5:], "bhsa_" + refresh[5:], "bhst_" + access[5:], "bhat_" + access[5:]} {
		require.Equal(t, map[string]any{"active": false}, introspected("rs", "rs-secret", dead))
	}

	// With the scope profile the account's own name, and no other.
	rec = w.exchange(w.consent("zhang-san", "scope", "profile"))
	body = endpointJSON(t, rec)
	require.Equal(t, "profile", body["scope"])
	require.Equal(t, "zhang-san", body["username"])
	require.Equal(t, sub, body["sub"])
	require.Len(t, body, 7)
	require.Equal(t, "zhang-san", introspected("probe", endpointSecret, body["access_token"].(string))["username"])
	body = endpointJSON(t, w.refresh(body["refresh_token"].(string), "scope", "profile"))
	require.Equal(t, "profile", body["scope"])
	require.Equal(t, "zhang-san", body["username"])
	require.Empty(t, w.logged())
}

// Design §1.6: Require takes delegation tokens only, and so do use and everything else that is not sign-in.
func TestSignInTokensDoNothing(t *testing.T) {
	w := newEndpointWorld(t)
	access, refresh := w.signedIn("zhang-san", "scope", "profile")
	v := &authz.Verifier{Engine: w.engine}
	h := v.Require("group:{group}/message.write")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("let in") }))
	funcs := v.RequireFunc(func(*http.Request) (scope.Scope, error) {
		t.Error("resolved")
		return scope.MustParse("group:42/message.write"), nil
	})(h)
	stranger := ""
	for _, token := range []string{"bhst_x", access, refresh, w.consent("zhang-san"), "bhst_" + access[5:]} {
		for _, guard := range []http.Handler{h, funcs} {
			r := httptest.NewRequest("POST", "/", nil)
			r.SetPathValue("group", "42")
			r.Header.Set("Authorization", "Bearer "+token)
			rec := httptest.NewRecorder()
			guard.ServeHTTP(rec, r)
			require.Equal(t, http.StatusUnauthorized, rec.Code)
			if stranger == "" {
				stranger = rec.Body.String() + rec.Header().Get("WWW-Authenticate")
			}
			require.Equal(t, stranger, rec.Body.String()+rec.Header().Get("WWW-Authenticate"), "P10: as a stranger's")
		}
		r := httptest.NewRequest("GET", "/oauth2/grants", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		rec := w.do(r)
		require.Equal(t, http.StatusUnauthorized, rec.Code)
		endpointRefused(t, w.redeem(token), 400, "invalid_grant")
		require.Error(t, w.use(token))
	}
	require.Contains(t, stranger, "invalid_token")
	// Nor the other way round.
	for _, token := range []string{w.code("probe"), w.token("probe"), w.accessToken("probe", endpointSecret)} {
		endpointRefused(t, w.exchange(token), 400, "invalid_grant")
		endpointRefused(t, w.refresh(token), 400, "invalid_grant")
	}
}

func TestSignInCode(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.consent("zhang-san")
	for _, row := range []struct {
		name, code string
		change     []string
	}{
		{"no code", "invalid_request", []string{"code", "-"}},
		{"no address", "invalid_request", []string{"redirect_uri", "-"}},
		{"no verifier", "invalid_request", []string{"code_verifier", "-"}},
		{"an empty verifier", "invalid_request", []string{"code_verifier", ""}},
		{"another API", "invalid_target", []string{"resource", "https://elsewhere.example"}},
		{"another address", "invalid_grant", []string{"redirect_uri", "http://127.0.0.1/cb"}},
		{"a longer address", "invalid_grant", []string{"redirect_uri", signInRedirect + "/"}},
		{"the challenge", "invalid_grant", []string{"code_verifier", signInChallenge}},
		{"another verifier", "invalid_grant", []string{"code_verifier", strings.Repeat("a", 43)}},
		{"a short verifier", "invalid_grant", []string{"code_verifier", signInVerifier[1:]}},
		{"a long verifier", "invalid_grant", []string{"code_verifier", strings.Repeat("a", 129)}},
		{"a verifier that is none", "invalid_grant", []string{"code_verifier", signInVerifier + "!"}},
		{"garbage", "invalid_grant", []string{"code", "x"}},
		{"a prefix alone", "invalid_grant", []string{"code", "bhac_"}},
		{"a shortened code", "invalid_grant", []string{"code", code[:len(code)-1]}},
		{"a longer code", "invalid_grant", []string{"code", code + "A"}},
		{"a line break in it", "invalid_grant", []string{"code", code[:20] + "\n" + code[20:]}},
		{"a huge code", "invalid_grant", []string{"code", "bhac_" + strings.Repeat("A", 60000)}},
		{"another prefix", "invalid_grant", []string{"code", "bhsr_" + code[5:]}},
	} {
		t.Run(row.name, func(t *testing.T) {
			endpointRefused(t, w.exchange(code, row.change...), 400, row.code)
			endpointRefused(t, w.exchangeAs("probe", "wrong", code, row.change...), 401, "invalid_client")
		})
	}
	// A stranger hears the same of a code that is good, and of one that is not, whatever else is wrong; the code survives it.
	said := endpointRefused(t, w.exchange("bhac_x"), 400, "invalid_grant")
	require.Equal(t, said, endpointRefused(t, w.exchangeAs("other", "other-secret", code), 400, "invalid_grant"))
	require.Equal(t, said, endpointRefused(t, w.exchangeAs("other", "other-secret", code, "code_verifier", strings.Repeat("a", 43)), 400, "invalid_grant"))
	endpointCheckMalformed(t, w, "/oauth2/token", url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {signInRedirect}, "code_verifier": {signInVerifier}}.Encode())
	require.Equal(t, http.StatusOK, w.exchange(code).Code, "the code has survived all that")

	late := w.consent("zhang-san")
	w.advance(time.Minute - time.Microsecond)
	require.Equal(t, http.StatusOK, w.exchange(w.consent("zhang-san"), "scope", "x", "resource", endpointIssuer).Code)
	w.advance(time.Microsecond)
	require.Contains(t, endpointRefused(t, w.exchange(late), 400, "invalid_grant"), "expired")
	require.Empty(t, w.logged())
}

// RFC 6749 §4.1.2: a code that comes again ends what it gave. Only who could have redeemed it counts, and within 10 s it
// is taken for a retry.
func TestSignInCodeAgain(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.consent("zhang-san")
	access, refresh := w.tokens(w.exchange(code))
	require.Contains(t, endpointRefused(t, w.exchange(code), 400, "invalid_grant"), "a moment ago")
	w.advance(10 * time.Second)
	endpointRefused(t, w.exchange(code), 400, "invalid_grant")
	require.True(t, w.live(access))
	w.advance(time.Microsecond)
	for _, rec := range []*httptest.ResponseRecorder{
		w.exchangeAs("other", "other-secret", code), w.exchange(code, "code_verifier", strings.Repeat("a", 43)), w.exchange(code, "redirect_uri", "http://127.0.0.1/cb"),
	} {
		endpointRefused(t, rec, 400, "invalid_grant")
	}
	require.True(t, w.live(access), "who has seen a code, and nothing else, ends nothing")
	access2, refresh := w.tokens(w.refresh(refresh))
	require.Empty(t, w.logged())
	require.Contains(t, endpointRefused(t, w.exchange(code), 400, "invalid_grant"), "has ended")
	require.False(t, w.live(access))
	require.False(t, w.live(access2))
	endpointRefused(t, w.refresh(refresh), 400, "invalid_grant")
	endpointRefused(t, w.exchange(code), 400, "invalid_grant")
	require.Empty(t, w.signIns())
	require.Contains(t, w.logged(), "a sign-in has ended")
}

func TestSignInRefresh(t *testing.T) {
	w := newEndpointWorld(t)
	access, refresh := w.signedIn("zhang-san")
	for _, row := range []struct {
		name, code string
		change     []string
	}{
		{"nothing", "invalid_request", []string{"refresh_token", ""}},
		{"another API", "invalid_target", []string{"resource", "https://elsewhere.example"}},
		{"more scope", "invalid_scope", []string{"scope", "profile"}},
		{"an action", "invalid_scope", []string{"scope", "group:42/message.write"}},
		{"garbage", "invalid_grant", []string{"refresh_token", "x"}},
		{"the access token", "invalid_grant", []string{"refresh_token", access}},
		{"shortened", "invalid_grant", []string{"refresh_token", refresh[:len(refresh)-1]}},
		{"another prefix", "invalid_grant", []string{"refresh_token", "bhac_" + refresh[5:]}},
		{"in other bits", "invalid_grant", []string{"refresh_token", refresh[:40] + "AAAA" + refresh[44:]}},
	} {
		t.Run(row.name, func(t *testing.T) { endpointRefused(t, w.refresh(refresh, row.change...), 400, row.code) })
	}
	endpointCheckMalformed(t, w, "/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}.Encode())

	access2, refresh2 := w.tokens(w.refresh(refresh, "resource", endpointIssuer, "scope", ""))
	require.NotEqual(t, refresh, refresh2)
	require.True(t, w.live(access), "until its end")
	require.True(t, w.live(access2))
	require.Contains(t, endpointRefused(t, w.refresh(refresh), 400, "invalid_grant"), "a moment ago")
	_, refresh3 := w.tokens(w.refresh(refresh2))
	endpointRefused(t, w.refresh(refresh), 400, "invalid_grant") // the one before the last, and still in the grace
	w.advance(10 * time.Second)
	_, refresh4 := w.tokens(w.refresh(refresh3))
	for _, used := range []string{refresh, refresh2, refresh3} {
		endpointRefused(t, w.refresh(used), 400, "invalid_grant")
	}
	_, refresh5 := w.tokens(w.refresh(refresh4))
	require.Empty(t, w.logged())
	w.advance(time.Microsecond)
	require.Contains(t, endpointRefused(t, w.refresh(refresh), 400, "invalid_grant"), "has ended")
	endpointRefused(t, w.refresh(refresh5), 400, "invalid_grant")
	require.False(t, w.live(access2))
	require.Empty(t, w.signIns())
	require.Contains(t, w.logged(), "a sign-in has ended")
	for i := range 40 { // and each is remembered as used, however many there were
		if i == 0 {
			_, refresh = w.signedIn("zhang-san")
			refresh2 = refresh
		}
		_, refresh = w.tokens(w.refresh(refresh))
	}
	require.Len(t, w.signIns(), 1)
	require.Less(t, len(w.signIns()[0].Data), 4096)
	w.advance(11 * time.Second)
	endpointRefused(t, w.refresh(refresh2), 400, "invalid_grant")
	require.Empty(t, w.signIns())
}

// An access token lives for an hour, a refresh token for 30 days, and all of it for a year.
func TestSignInLives(t *testing.T) {
	w := newEndpointWorld(t)
	access, refresh := w.signedIn("zhang-san")
	w.advance(time.Hour - time.Microsecond)
	require.True(t, w.live(access))
	w.advance(time.Microsecond)
	require.False(t, w.live(access))
	began := w.now().Add(-time.Hour)
	_, refresh = w.tokens(w.refresh(refresh))
	last := refresh
	for w.now().Before(began.Add(350 * 24 * time.Hour)) {
		w.advance(30*24*time.Hour - 2*time.Microsecond)
		access, refresh = w.tokens(w.refresh(refresh))
		require.True(t, w.live(access))
	}
	w.advance(began.Add(365*24*time.Hour - time.Minute).Sub(w.now()))
	rec := w.refresh(refresh)
	require.Equal(t, 60.0, endpointJSON(t, rec)["expires_in"], "no token outlives the rest")
	access, refresh = w.tokens(rec)
	w.advance(time.Minute)
	require.False(t, w.live(access))
	require.Contains(t, endpointRefused(t, w.refresh(refresh), 400, "invalid_grant"), "expired")
	endpointRefused(t, w.refresh(last), 400, "invalid_grant")

	_, refresh = w.signedIn("zhang-san")
	w.advance(30 * 24 * time.Hour)
	require.Contains(t, endpointRefused(t, w.refresh(refresh), 400, "invalid_grant"), "expired")
}

// P5, RFC 7009: whatever ends a sign-in ends all of it, by one write, and nothing else.
func TestSignInEnds(t *testing.T) {
	ctx := context.Background()
	revoke := func(w *endpointWorld, id, secret, token string) {
		rec := w.post("/oauth2/revoke", id, secret, url.Values{"token": {token}})
		require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
		require.Empty(w.t, rec.Body.String())
	}
	for name, row := range map[string]struct {
		end   func(w *endpointWorld, code, access, used, refresh string)
		other bool // the account's sign-in of before lives
	}{
		"the access token":         {func(w *endpointWorld, _, access, _, _ string) { revoke(w, "probe", endpointSecret, access) }, true},
		"the refresh token":        {func(w *endpointWorld, _, _, _, refresh string) { revoke(w, "probe", endpointSecret, refresh) }, true},
		"the refresh token before": {func(w *endpointWorld, _, _, used, _ string) { revoke(w, "probe", endpointSecret, used) }, true},
		"the code":                 {func(w *endpointWorld, code, _, _, _ string) { revoke(w, "probe", endpointSecret, code) }, true},
		"the account, all of it": {func(w *endpointWorld, _, _, _, _ string) {
			require.NoError(w.t, w.engine.RevokeAccount(ctx, "zhang-san"))
		}, false},
		"the account, at this app": {func(w *endpointWorld, _, _, _, _ string) {
			require.NoError(w.t, w.engine.RevokeSignIns(ctx, "zhang-san", "probe"))
		}, false},
		"the account, at this, again": {func(w *endpointWorld, _, _, _, _ string) {
			require.NoError(w.t, w.engine.RevokeSignIns(ctx, "zhang-san", "probe"))
			require.NoError(w.t, w.engine.RevokeSignIns(ctx, "zhang-san", "probe"))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEndpointWorld(t)
			_, other := w.signedIn("zhang-san")
			_, stranger := w.signedIn("li-si")
			waiting := w.consent("zhang-san")
			code := w.consent("zhang-san")
			access, used := w.tokens(w.exchange(code))
			access2, refresh := w.tokens(w.refresh(used))
			row.end(w, code, access, used, refresh)
			require.False(t, w.live(access))
			require.False(t, w.live(access2))
			endpointRefused(t, w.refresh(refresh), 400, "invalid_grant")
			endpointRefused(t, w.exchange(code), 400, "invalid_grant")
			if status := w.exchange(waiting).Code; row.other {
				require.Equal(t, http.StatusOK, status)
			} else {
				require.Equal(t, http.StatusBadRequest, status, "a code that waits ends, too")
			}
			require.Equal(t, row.other, w.refresh(other).Code == http.StatusOK)
			require.Equal(t, http.StatusOK, w.refresh(stranger).Code, "another account's")
			_, again := w.signedIn("zhang-san")
			require.Equal(t, http.StatusOK, w.refresh(again).Code, "what comes after lives")
		})
	}
	w := newEndpointWorld(t)
	access, refresh := w.signedIn("zhang-san")
	for _, token := range []string{access, refresh, "bhsa_x", "bhsr_x", "bhac_x", refresh[:60]} {
		revoke(w, "other", "other-secret", token)
		revoke(w, "rs", "rs-secret", token)
	}
	require.NoError(t, w.engine.RevokeSignIns(ctx, "zhang-san", "other"))
	require.NoError(t, w.engine.RevokeSignIns(ctx, "li-si", "probe"))
	require.NoError(t, w.engine.RevokeApp(ctx, "zhang-san", "probe", scope.MustDomain("group:42")))
	token := w.token("probe")
	require.True(t, w.live(access), "none of these was of this sign-in")
	require.NoError(t, w.engine.RevokeSignIns(ctx, "zhang-san", "probe"))
	require.False(t, w.live(access))
	require.NoError(t, w.use(token), "grants are another matter")
	for _, bad := range [][2]string{{"", "probe"}, {"zhang-san", ""}, {"zhang-san", strings.Repeat("a", 65)}, {"\xff", "probe"}} {
		require.ErrorIs(t, w.engine.RevokeSignIns(ctx, bad[0], bad[1]), grant.ErrInvalid)
	}
	entries, err := w.engine.Ledger(ctx, "zhang-san", "", 1)
	require.NoError(t, err)
	require.Equal(t, "used", entries[0].What)
	entries, err = w.engine.Ledger(ctx, "zhang-san", entries[0].ID, 1)
	require.NoError(t, err)
	require.Equal(t, "revoked", entries[0].What)
	require.Equal(t, "probe", entries[0].App)
}

// What an app was given ends while it is suspended, and for good when it is removed, also if it comes back.
func TestSignInFollowsApps(t *testing.T) {
	node := signInNode(t, store.NewMemory(), time.Now)
	app := authz.App{ID: "probe", Secret: grant.NewSecret(endpointSecret), RedirectURIs: []string{signInRedirect}}
	change := func(c authz.Change) { require.NoError(t, node.server.Change(t.Context(), c)) }
	resource := func(access string) bool {
		return endpointJSON(t, node.post("/oauth2/introspect", "rs", "rs-secret", url.Values{"token": {access}}))["active"] == true
	}
	access, refresh := node.signedIn("zhang-san")
	waiting := node.consent("zhang-san")
	require.True(t, resource(access))
	change(authz.Change{SuspendApps: []string{"probe"}})
	require.False(t, resource(access))
	signInPage(t, node.authorize("zhang-san", signInQuery().Encode()), http.StatusBadRequest)
	change(authz.Change{ResumeApps: []string{"probe"}})
	require.True(t, resource(access))
	access, refresh = node.tokens(node.refresh(refresh))
	change(authz.Change{RemoveApps: []string{"probe"}})
	require.False(t, resource(access))
	change(authz.Change{Apps: []authz.App{app}})
	require.False(t, resource(access), "it begins anew")
	endpointRefused(t, node.refresh(refresh), 400, "invalid_grant")
	endpointRefused(t, node.exchange(waiting), 400, "invalid_grant")
	access, _ = node.signedIn("zhang-san")
	require.True(t, resource(access))
}

// A public client has nothing but its name: PKCE, the loopback address and refresh tokens that rotate have to do.
func TestSignInPublicClient(t *testing.T) {
	w := newEndpointWorld(t)
	post := func(path string, form url.Values, header ...string) *httptest.ResponseRecorder {
		form.Set("client_id", "native")
		return w.do(endpointRequest("POST", path, form.Encode(), header...))
	}
	const redirect = "http://127.0.0.1:54321/cb"
	code := w.consent("zhang-san", "client_id", "native", "redirect_uri", redirect)
	form := func(verifier string) url.Values {
		return url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {redirect}, "code_verifier": {verifier}}
	}
	endpointRefused(t, post("/oauth2/token", form(strings.Repeat("a", 43))), 400, "invalid_grant")
	endpointRefused(t, post("/oauth2/token", form("")), 400, "invalid_request")
	endpointRefused(t, post("/oauth2/token", form(signInVerifier), "Authorization", endpointBasic("native", "")), 401, "invalid_client")
	endpointRefused(t, w.exchangeAs("native", "guess", code, "redirect_uri", redirect), 401, "invalid_client")
	access, refresh := w.tokens(post("/oauth2/token", form(signInVerifier)))
	require.Equal(t, true, endpointJSON(t, w.post("/oauth2/introspect", "rs", "rs-secret", url.Values{"token": {access}}))["active"])
	_, refresh2 := w.tokens(post("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}))
	endpointRefused(t, post("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}), 400, "invalid_grant")

	// Nothing else is to be had by a name.
	_, others := w.signedIn("zhang-san")
	endpointRefused(t, post("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {others}}), 400, "invalid_grant")
	endpointRefused(t, post("/oauth2/token", url.Values{"grant_type": {"client_credentials"}}), 401, "invalid_client")
	endpointRefused(t, post("/oauth2/token", url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {w.code("probe")}}), 401, "invalid_client")
	endpointRefused(t, post("/oauth2/introspect", url.Values{"token": {access}}), 401, "invalid_client")
	for _, id := range []string{"probe", "nobody"} {
		r := endpointRequest("POST", "/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {others}, "client_id": {id}}.Encode())
		endpointRefused(t, w.do(r), 401, "invalid_client")
	}

	require.Equal(t, http.StatusOK, post("/oauth2/revoke", url.Values{"token": {others}}).Code)
	require.Equal(t, http.StatusOK, w.refresh(others).Code, "another's is left alone")
	require.Equal(t, http.StatusOK, post("/oauth2/revoke", url.Values{"token": {refresh2}}).Code)
	endpointRefused(t, post("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh2}}), 400, "invalid_grant")
	require.Equal(t, map[string]any{"active": false}, endpointJSON(t, w.post("/oauth2/introspect", "rs", "rs-secret", url.Values{"token": {access}})))
	require.Empty(t, w.logged())
}

func TestSignOut(t *testing.T) {
	var ahead atomic.Int64
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	node := signInNode(t, store.NewMemory(), func() time.Time { return began.Add(time.Duration(ahead.Load())) })
	list := func(account string) []authz.SignIn {
		found, err := node.server.SignIns(t.Context(), account)
		require.NoError(t, err)
		return found
	}
	require.Empty(t, list("zhang-san"))
	node.consent("zhang-san")
	require.Empty(t, list("zhang-san"), "a code that waits")
	_, refresh := node.signedIn("zhang-san")
	ahead.Store(int64(time.Hour))
	node.signedIn("zhang-san", "scope", "profile")
	node.tokens(node.refresh(refresh))
	node.signedIn("li-si")
	month := 30 * 24 * time.Hour
	later := began.Add(time.Hour)
	require.Equal(t, []authz.SignIn{
		{App: "probe", Since: later, Used: later, NotAfter: later.Add(month), Profile: true},
		{App: "probe", Since: began, Used: later, NotAfter: later.Add(month)},
	}, list("zhang-san"))
	require.NoError(t, node.server.SignOut(t.Context(), "zhang-san", "probe"))
	require.Empty(t, list("zhang-san"))
	require.Len(t, list("li-si"), 1)
	ahead.Add(int64(month))
	require.Empty(t, list("li-si"))
}

// P6 and P9: nothing of it lies in the store in the clear, and what is forged costs no look there.
func TestSignInSecrets(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.consent("zhang-san")
	access, used := w.tokens(w.exchange(code))
	access2, refresh := w.tokens(w.refresh(used))
	waiting := w.consent("zhang-san")
	dump := fmt.Sprint(w.signIns())
	for _, text := range []string{code, access, used, access2, refresh, waiting} {
		require.NotContains(t, dump, text)
		require.NotContains(t, dump, text[5:])
		raw, err := base64.RawURLEncoding.DecodeString(text[5:])
		require.NoError(t, err)
		for i := 0; i+16 <= len(raw); i++ {
			require.NotContains(t, dump, string(raw[i:i+16]))
		}
		require.NotContains(t, string(raw), "zhang-san")
		require.NotContains(t, string(raw), strings.Split(w.signIns()[0].ID, ".")[0], "the account's place, by which two apps could tell that they speak of one")
	}
	require.NotContains(t, dump, signInVerifier)

	var fail error = fmt.Errorf("the store was asked")
	w.store.failGet.Store(&fail)
	w.store.failApply.Store(&fail)
	flip := func(text string, at int) string {
		c := byte('A')
		if text[at] == c {
			c = 'B'
		}
		return text[:at] + string(c) + text[at+1:]
	}
	for _, text := range []string{code, access, refresh} {
		for at := 5; at < len(text)-1; at += 7 {
			forged := flip(text, at)
			endpointRefused(t, w.exchange(forged), 400, "invalid_grant")
			endpointRefused(t, w.refresh(forged), 400, "invalid_grant")
			require.False(t, w.live(forged))
			require.Equal(t, http.StatusOK, w.post("/oauth2/revoke", "probe", endpointSecret, url.Values{"token": {forged}}).Code)
		}
	}
	require.Empty(t, w.logged())
	for _, rec := range []*httptest.ResponseRecorder{
		w.exchange(waiting), w.refresh(refresh), w.post("/oauth2/introspect", "probe", endpointSecret, url.Values{"token": {access}}),
		w.post("/oauth2/revoke", "probe", endpointSecret, url.Values{"token": {access}}),
	} {
		endpointRefused(t, rec, 503, "temporarily_unavailable")
	}
	require.Contains(t, w.logged(), "the store was asked")
	w.store.failGet.Store(nil)
	endpointRefused(t, w.exchange(waiting), 503, "temporarily_unavailable")
	endpointRefused(t, w.refresh(refresh), 503, "temporarily_unavailable")
	w.store.failApply.Store(nil)
	require.Equal(t, http.StatusOK, w.exchange(waiting).Code)
	require.Equal(t, http.StatusOK, w.refresh(refresh).Code)
}

// A record that is there and cannot be read is a fault of the server, not a "no".
func TestSignInDamaged(t *testing.T) {
	w := newEndpointWorld(t)
	access, refresh := w.signedIn("zhang-san")
	r := w.signIns()[0]
	r.Data = []byte("{")
	_, err := w.mem.Apply(t.Context(), w.now(), []store.Op{store.Put(r)})
	require.NoError(t, err)
	endpointRefused(t, w.refresh(refresh), 503, "temporarily_unavailable")
	endpointRefused(t, w.post("/oauth2/introspect", "probe", endpointSecret, url.Values{"token": {access}}), 503, "temporarily_unavailable")
	require.Contains(t, w.logged(), "record signin")
}

// A signInServer is a whole server, as the others' endpoints.
type signInServer struct {
	*endpointWorld
	server *authz.Server
}

func signInNode(t testing.TB, st store.Store, now func() time.Time) signInServer {
	w := &endpointWorld{t: t, mux: http.NewServeMux(), start: now}
	az, err := authz.New(authz.Config{
		Issuer: endpointIssuer, Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)), Now: now,
		Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []authz.App{
			{ID: "probe", Secret: grant.NewSecret(endpointSecret), RedirectURIs: []string{signInRedirect}},
			{ID: "rs", Secret: grant.NewSecret("rs-secret"), Introspect: true},
		},
		Account: w.account, LoginURL: "/login",
	})
	require.NoError(t, err)
	az.Routes(w.mux.Handle)
	return signInServer{w, az}
}

// A code and a refresh token are taken once, by 64 at a time over two nodes of every store; who loses ends nothing. What
// comes later, on the other node, does.
func TestSignInOnceOnTwoNodes(t *testing.T) {
	stores.Everywhere(t, func(t *testing.T, s stores.Maker) {
		t.Parallel()
		open := s.New(t)
		var ahead atomic.Int64
		began := time.Now()
		now := func() time.Time { return began.Add(time.Duration(ahead.Load())) }
		one, two := open(), open()
		if s.Name != "memory" {
			one, two = oneOfMany{one}, oneOfMany{two}
		}
		nodes := []signInServer{signInNode(t, one, now), signInNode(t, two, now)}
		race := func(f func(n signInServer) *httptest.ResponseRecorder) *httptest.ResponseRecorder {
			t.Helper()
			var wg sync.WaitGroup
			answers := make([]*httptest.ResponseRecorder, 64)
			start := make(chan struct{})
			for i := range answers {
				wg.Go(func() {
					<-start
					answers[i] = f(nodes[i%2])
				})
			}
			close(start)
			wg.Wait()
			var won *httptest.ResponseRecorder
			for _, rec := range answers {
				if rec.Code == http.StatusOK {
					require.Nil(t, won, "two winners")
					won = rec
					continue
				}
				endpointRefused(t, rec, 400, "invalid_grant")
			}
			require.NotNil(t, won, "no winner")
			return won
		}
		code := nodes[0].consent("zhang-san")
		access, first := nodes[0].tokens(race(func(n signInServer) *httptest.ResponseRecorder { return n.exchange(code) }))
		refresh := first
		for range s.Some(10) {
			token := refresh
			_, refresh = nodes[0].tokens(race(func(n signInServer) *httptest.ResponseRecorder { return n.refresh(token) }))
		}
		require.True(t, nodes[0].live(access))
		require.True(t, nodes[1].live(access), "who lost has ended nothing")
		ahead.Add(int64(11 * time.Second))
		access, refresh = nodes[1].tokens(nodes[1].refresh(refresh))
		endpointRefused(t, nodes[0].refresh(first), 400, "invalid_grant")
		require.False(t, nodes[1].live(access), "a copy has come, and all of it is over")
		endpointRefused(t, nodes[1].refresh(refresh), 400, "invalid_grant")

		// The copy and the owner at once: one of them gets a token, and it is of no use when the other has come.
		_, old := nodes[0].signedIn("zhang-san")
		_, current := nodes[0].tokens(nodes[0].refresh(old))
		ahead.Add(int64(11 * time.Second))
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() { nodes[i%2].refresh([]string{old, current}[i%2]) })
		}
		wg.Wait()
		left, err := one.List(t.Context(), store.Query{Kind: "signin"})
		require.NoError(t, err)
		require.Empty(t, left, "nothing has come back to life")

		// Revoking on one node, and refreshing on the other.
		_, refresh = nodes[0].signedIn("zhang-san")
		wg.Go(func() { _ = nodes[0].server.Engine().RevokeSignIns(t.Context(), "zhang-san", "probe") })
		for range 16 {
			if rec := nodes[1].refresh(refresh); rec.Code == http.StatusOK {
				_, refresh = nodes[1].tokens(rec)
			}
		}
		wg.Wait()
		endpointRefused(t, nodes[1].refresh(refresh), 400, "invalid_grant")
	})
}

// What is over goes: a code after its minute, a sign-in after its 30 days.
func TestSignInIsPurged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := store.NewMemory()
		node := signInNode(t, mem, time.Now)
		run := func() {
			defer background(t, func(ctx context.Context) { _ = node.server.Run(ctx) })()
			time.Sleep(3 * time.Minute)
		}
		node.consent("zhang-san")
		_, refresh := node.signedIn("li-si")
		require.Equal(t, 2, remain(t, mem, "signin"))
		run()
		require.Equal(t, 1, remain(t, mem, "signin"))
		time.Sleep(29 * 24 * time.Hour)
		node.tokens(node.refresh(refresh))
		time.Sleep(29 * 24 * time.Hour)
		run()
		require.Equal(t, 1, remain(t, mem, "signin"))
		time.Sleep(24 * time.Hour)
		run()
		require.Zero(t, remain(t, mem, "signin"))
	})
}
