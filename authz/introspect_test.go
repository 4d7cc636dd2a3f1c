package authz_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

func (w *endpointWorld) introspect(app, secret, token string, more ...string) string {
	w.t.Helper()
	form := url.Values{"token": {token}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	rec := w.post("/oauth2/introspect", app, secret, form)
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(w.t, "no-store", rec.Header().Get("Cache-Control"))
	require.Equal(w.t, "application/json", rec.Header().Get("Content-Type"))
	return strings.TrimSpace(rec.Body.String())
}

const endpointInactive = `{"active":false}`

func TestIntrospect(t *testing.T) {
	w := newEndpointWorld(t)
	g := w.emit(grant.Mention, "probe")
	_, secret, err := w.engine.Redeem(context.Background(), "probe", g.Code)
	require.NoError(t, err)
	token := secret.Reveal()
	require.NoError(t, w.use(token))
	sub := w.engine.Name("probe", "zhang-san")

	own := fmt.Sprintf(`{"active":true,"scope":"group:42/member.read group:42/message.write","client_id":"probe","token_type":"Bearer",`+
		`"exp":%d,"iat":%d,"sub":%q,"iss":%q,"grant_id":%q,"domain":"group:42","uses_left":2,"act":{"sub":"probe"},`+
		`"authorization_details":[{"type":"social_operation","locations":["https://social.example"],"domain":"group:42","actions":["member.read","message.write"],"uses":2}]}`,
		w.now().Add(10*time.Minute).Unix(), w.now().Unix(), sub, endpointIssuer, g.ID)
	require.Equal(t, own, w.introspect("probe", endpointSecret, token))
	require.NotContains(t, own, "zhang-san")
	for _, hint := range []string{"access_token", "refresh_token", "nonsense", ""} {
		require.Equal(t, own, w.introspect("probe", endpointSecret, token, "token_type_hint", hint))
	}
	require.JSONEq(t, strings.Replace(own, `"sub"`, `"username":"zhang-san","sub"`, 1), w.introspect("rs", "rs-secret", token),
		"a resource server is told the account, and the name by which the token's app knows it")
	require.Equal(t, endpointInactive, w.introspect("other", "other-secret", token), "another app's token")

	// Looking spends nothing.
	require.Equal(t, own, w.introspect("probe", endpointSecret, token))
	require.NoError(t, w.use(token))
	require.NoError(t, w.use(token))
	require.ErrorIs(t, w.use(token), grant.ErrUsedUp)
	require.Equal(t, endpointInactive, w.introspect("probe", endpointSecret, token), "used up")

	t.Run("unlimited", func(t *testing.T) {
		_, token, err := w.engine.Redeem(context.Background(), "probe", w.emit(grant.Command, "").Code)
		require.NoError(t, err)
		said := w.introspect("probe", endpointSecret, token.Reveal())
		require.Contains(t, said, `"active":true`)
		require.NotContains(t, said, "uses_left")
	})
	t.Run("dead or no tokens", func(t *testing.T) {
		revoked, late := w.token("probe"), w.token("probe")
		require.NoError(t, w.engine.RevokeToken(context.Background(), "probe", grant.NewSecret(revoked)))
		w.advance(10 * time.Minute)
		for _, text := range []string{revoked, late, w.code("probe"), "x", "bhst_", "bhat_", "bhat_" + strings.Repeat("A", 43), "bhst_" + strings.Repeat("A", 60000), late + "A", "日本", " "} {
			require.Equal(t, endpointInactive, w.introspect("probe", endpointSecret, text))
			require.Equal(t, endpointInactive, w.introspect("rs", "rs-secret", text))
		}
	})
	t.Run("bhat_ of another client", func(t *testing.T) {
		require.Equal(t, endpointInactive, w.introspect("other", "other-secret", w.accessToken("probe", endpointSecret)))
	})
	require.Empty(t, w.logged())
}

// What the account may no longer do is no longer in the scope.
func TestIntrospectRights(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	denied := fmt.Errorf("%w: has left", grant.ErrDenied)
	w.permit.Store(&denied)
	require.Equal(t, endpointInactive, w.introspect("probe", endpointSecret, token))
	unknown := errors.New("database is down, says admin")
	w.permit.Store(&unknown)
	rec := w.post("/oauth2/introspect", "probe", endpointSecret, url.Values{"token": {token}})
	endpointRefused(t, rec, 503, "temporarily_unavailable")
	require.NotContains(t, rec.Body.String(), "database")
	require.Contains(t, w.logged(), "database is down")
}

func TestIntrospectMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	endpointCheckMalformed(t, w, "/oauth2/introspect", "token="+token)
	endpointCheckTaken(t, w, "/oauth2/introspect", func() string { return "token=" + token })
	for _, body := range []string{"", "token=", "token", "token_type_hint=access_token", "tokens=x"} {
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/introspect", body, "Authorization", endpointBasic("rs", "rs-secret"))), 400, "invalid_request")
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/introspect", body)), 401, "invalid_client")
	}
	d, err := w.engine.Use(context.Background(), token, scope.MustParse("group:42/message.write"))
	require.NoError(t, err)
	require.Equal(t, 2, d.Left, "nothing was spent")
}

func TestIntrospectStoreFails(t *testing.T) {
	w := newEndpointWorld(t)
	token, access := w.token("probe"), w.accessToken("probe", endpointSecret)
	var cause error = endpointUnhashable{"disk"}
	w.store.failGet.Store(&cause)
	for _, text := range []string{token, access} {
		endpointRefused(t, w.post("/oauth2/introspect", "rs", "rs-secret", url.Values{"token": {text}}), 503, "temporarily_unavailable")
	}
	require.Equal(t, endpointInactive, w.introspect("rs", "rs-secret", "bhst_forged"), "P9: a forged token does not reach the store")
	require.Equal(t, endpointInactive, w.introspect("rs", "rs-secret", "bhat_forged"))
}
