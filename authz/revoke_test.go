package authz_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
)

func (w *endpointWorld) revoke(app, secret, token string) {
	w.t.Helper()
	rec := w.post("/oauth2/revoke", app, secret, url.Values{"token": {token}, "token_type_hint": {"access_token"}})
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	require.Empty(w.t, rec.Body.String())
	require.Equal(w.t, "no-store", rec.Header().Get("Cache-Control"))
}

func TestRevoke(t *testing.T) {
	w := newEndpointWorld(t)
	t.Run("a token", func(t *testing.T) {
		token, bystander := w.token("probe"), w.token("probe")
		require.NoError(t, w.use(token))
		w.revoke("other", "other-secret", token)
		w.revoke("rs", "rs-secret", token)
		require.NoError(t, w.use(token), "another's is left alone")
		w.revoke("probe", endpointSecret, token)
		require.ErrorIs(t, w.use(token), grant.ErrRevoked)
		require.Equal(t, endpointInactive, w.introspect("probe", endpointSecret, token))
		w.revoke("probe", endpointSecret, token) // again does no harm
		require.NoError(t, w.use(bystander))
	})
	t.Run("a code", func(t *testing.T) {
		code := w.code("probe")
		w.revoke("other", "other-secret", code)
		require.Equal(t, http.StatusOK, w.redeem(code).Code)
		code = w.code("probe")
		w.revoke("probe", endpointSecret, code)
		require.Contains(t, endpointRefused(t, w.redeem(code), 400, "invalid_grant"), "revoked")
	})
	t.Run("the code of a token ends the token", func(t *testing.T) {
		code := w.code("probe")
		token := endpointJSON(t, w.redeem(code))["access_token"].(string)
		w.revoke("probe", endpointSecret, code)
		require.ErrorIs(t, w.use(token), grant.ErrRevoked)
	})
	t.Run("one of client_credentials", func(t *testing.T) {
		token := w.accessToken("probe", endpointSecret)
		w.revoke("other", "other-secret", token)
		w.revoke("rs", "rs-secret", token)
		require.Contains(t, w.introspect("probe", endpointSecret, token), `"active":true`)
		w.revoke("probe", endpointSecret, token)
		require.Equal(t, endpointInactive, w.introspect("probe", endpointSecret, token))
		w.revoke("probe", endpointSecret, token)
	})
	t.Run("nothing", func(t *testing.T) {
		for _, text := range []string{"x", " ", "bhst_", "bhsc_x", "bhat_x", "bhat_" + strings.Repeat("A", 43), "日本", strings.Repeat("x", 60000)} {
			w.revoke("probe", endpointSecret, text)
		}
	})
	require.Empty(t, w.logged())
}

func TestRevokeMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	token, access := w.token("probe"), w.accessToken("probe", endpointSecret)
	endpointCheckMalformed(t, w, "/oauth2/revoke", "token="+token)
	endpointCheckMalformed(t, w, "/oauth2/revoke", "token="+access)
	for _, body := range []string{"", "token=", "token", "token_type_hint=access_token"} {
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/revoke", body, "Authorization", endpointBasic("probe", endpointSecret))), 400, "invalid_request")
	}
	require.NoError(t, w.use(token), "nothing was revoked")
	require.Contains(t, w.introspect("probe", endpointSecret, access), `"active":true`)
	endpointCheckTaken(t, w, "/oauth2/revoke", func() string { return "token=" + token })
}

// RFC 7009 §2.2.1: the client must be told that the token may still live.
func TestRevokeStoreFails(t *testing.T) {
	w := newEndpointWorld(t)
	token, access := w.token("probe"), w.accessToken("probe", endpointSecret)
	cause := errors.New("disk on fire")
	for _, text := range []string{token, w.code("probe"), access} {
		w.store.failApply.Store(&cause)
		endpointRefused(t, w.post("/oauth2/revoke", "probe", endpointSecret, url.Values{"token": {text}}), 503, "temporarily_unavailable")
		w.store.failApply.Store(nil)
	}
	w.store.failGet.Store(&cause)
	endpointRefused(t, w.post("/oauth2/revoke", "probe", endpointSecret, url.Values{"token": {access}}), 503, "temporarily_unavailable")
	w.store.failGet.Store(nil)
	require.Equal(t, 4, strings.Count(w.logged(), "disk on fire"))
	require.NoError(t, w.use(token))
}
