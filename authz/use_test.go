package authz_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// spend calls POST /oauth2/use as the resource server.
func (w *endpointWorld) spend(token, want, key string) *httptest.ResponseRecorder {
	form := url.Values{"token": {token}, "scope": {want}}
	r := endpointRequest("POST", "/oauth2/use", form.Encode(), "Authorization", endpointBasic("rs", "rs-secret"))
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	return w.do(r)
}

const endpointWrite = "group:42/message.write"

// A resource server that does not share the store spends one use with one request, and learns what a handler behind
// Require would.
func TestUse(t *testing.T) {
	w := newEndpointWorld(t)
	g := w.emit(grant.Mention, "probe")
	_, secret, err := w.engine.Redeem(context.Background(), "probe", g.Code)
	require.NoError(t, err)
	token := secret.Reveal()
	rec := w.spend(token, "group:42/thread:7/message.write", "")
	require.Equal(t, 200, rec.Code, rec.Body)
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	require.JSONEq(t, fmt.Sprintf(`{"account":"zhang-san","app":"probe","domain":"group:42/thread:7","scope":"group:42/thread:7/message.write",
		"granted":"group:42/member.read group:42/message.write","grant":%q,"trigger":"probe:mention:group:*","operation":"mention","event":"m1",
		"iat":%d,"exp":%d,"uses":3,"left":2}`, g.ID, w.now().Unix(), w.now().Add(10*time.Minute).Unix()), rec.Body.String())

	// The answer was lost: the same request again is the same use.
	first := w.spend(token, endpointWrite, `"a"`)
	require.Equal(t, 200, first.Code)
	require.Empty(t, first.Header().Get("Idempotency-Replayed"))
	again := w.spend(token, endpointWrite, "a")
	require.Equal(t, 200, again.Code)
	require.Equal(t, "true", again.Header().Get("Idempotency-Replayed"))
	require.Equal(t, first.Body.String(), again.Body.String())
	require.Equal(t, 200, w.spend(token, endpointWrite, "b").Code, "another key is another use")
	require.Equal(t, `{"error":"invalid_token","error_description":"the token has no uses left","error_reason":"used_up"}`, body(w.spend(token, endpointWrite, "c")))
	require.Contains(t, body(w.spend(token, endpointWrite, "a")), `"left":0`, "also when there are none left: it was spent before")

	for _, try := range [][2]string{{token, "group:42/member.read"}, {w.token("probe"), "group:42/member.read"}} {
		rec := w.spend(try[0], try[1], "a")
		if try[0] != token { // another grant's
			require.Equal(t, 200, rec.Code)
			continue
		}
		require.Equal(t, 422, rec.Code)
		require.Contains(t, body(rec), `"error_reason":"key_reused"`)
	}
	entries, err := w.engine.Ledger(context.Background(), "zhang-san", "", 100)
	require.NoError(t, err)
	used := 0
	for _, e := range entries {
		if e.What == "used" {
			used++
		}
	}
	require.Equal(t, 4, used)
	require.Empty(t, w.logged())
}

func body(rec *httptest.ResponseRecorder) string { return strings.TrimSpace(rec.Body.String()) }

// P10: the same words as at Require, for the resource server to pass on; 400, since it is not the client that was refused.
func TestUseRefusals(t *testing.T) {
	w := newEndpointWorld(t)
	token, revoked := w.token("probe"), w.token("probe")
	require.NoError(t, w.engine.RevokeToken(context.Background(), "probe", grant.NewSecret(revoked)))
	for _, key := range []string{"", "k"} {
		for want, said := range map[[2]string]string{
			{token, "group:7/message.write"}:   `{"error":"insufficient_scope","error_description":"the token is for another domain","error_reason":"wrong_domain","scope":"group:7/message.write"}`,
			{token, "group:42/file.read"}:      `{"error":"insufficient_scope","error_description":"the token is for other actions","error_reason":"wrong_action","scope":"group:42/file.read"}`,
			{revoked, endpointWrite}:           `{"error":"invalid_token","error_description":"the token was revoked","error_reason":"revoked"}`,
			{"bhst_forged", endpointWrite}:     `{"error":"invalid_token","error_description":"the token is not valid"}`,
			{w.code("probe"), endpointWrite}:   `{"error":"invalid_token","error_description":"the token is not valid"}`,
			{token + "A", endpointWrite}:       `{"error":"invalid_token","error_description":"the token is not valid"}`,
			{"bhst_forged", "group:7/x.write"}: `{"error":"invalid_token","error_description":"the token is not valid"}`,
		} {
			rec := w.spend(want[0], want[1], key)
			require.Equal(t, 400, rec.Code)
			require.JSONEq(t, said, rec.Body.String())
			require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
			require.Empty(t, rec.Header().Get("WWW-Authenticate"))
		}
		denied := fmt.Errorf("%w: has left", grant.ErrDenied)
		w.permit.Store(&denied)
		require.Contains(t, body(w.spend(token, endpointWrite, key)), `"error_reason":"rights_changed"`)
		w.permit.Store(nil)
		require.Equal(t, `{"active":true`, w.introspect("rs", "rs-secret", token)[:14])
		require.Contains(t, w.introspect("rs", "rs-secret", token), `"uses_left":3`, "nothing of this was spent")
	}
	w.advance(10 * time.Minute)
	require.Contains(t, body(w.spend(token, endpointWrite, "")), `"error_reason":"expired"`)
	require.Empty(t, w.logged())
}

// An app spends through the API, by acting: here it learns nothing, not even of its own token, or whether its request was one.
func TestUseUnauthorized(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	for _, form := range []string{"token=" + token + "&scope=" + endpointWrite, "token=bhst_x&scope=" + endpointWrite, "scope=x", ""} {
		for id, secret := range map[string]string{"probe": endpointSecret, "other": "other-secret"} {
			r := endpointRequest("POST", "/oauth2/use", form, "Authorization", endpointBasic(id, secret), "Idempotency-Key", "")
			require.Equal(t, "the client may not spend tokens", endpointRefused(t, w.do(r), 403, "unauthorized_client"))
		}
	}
	require.Contains(t, w.introspect("probe", endpointSecret, token), `"uses_left":3`)
}

func TestUseMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	auth := endpointBasic("rs", "rs-secret")
	for _, row := range endpointMalformed("/oauth2/use", "token="+token+"&scope="+endpointWrite) {
		t.Run(row.name, func(t *testing.T) { endpointRefused(t, w.do(row.r), row.status, row.code) })
	}
	for form, code := range map[string]string{
		"": "invalid_request", "scope=" + endpointWrite: "invalid_request", "token=&scope=" + endpointWrite: "invalid_request",
		"token=" + token: "invalid_scope", "token=" + token + "&scope=": "invalid_scope", "token=" + token + "&scope=group:42": "invalid_scope",
		"token=" + token + "&scope=" + endpointWrite + "+" + endpointWrite: "invalid_scope",
	} {
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/use", form, "Authorization", auth)), 400, code)
	}
	for _, keys := range [][]string{{""}, {`""`}, {`"`}, {"a", "b"}, {strings.Repeat("k", 256)}, {"a b"}, {"\x80"}} {
		r := endpointRequest("POST", "/oauth2/use", "token="+token+"&scope="+endpointWrite, "Authorization", auth)
		r.Header["Idempotency-Key"] = keys
		endpointRefused(t, w.do(r), 400, "invalid_request")
	}
	require.Contains(t, w.introspect("probe", endpointSecret, token), `"uses_left":3`)
}

// P9 and law 5: a forgery does not reach the store, and a store that is away lets nothing through.
func TestUseStoreFails(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	var cause error = errors.New("the disk is full, says admin")
	w.store.failApply.Store(&cause)
	w.store.failGet.Store(&cause)
	for _, key := range []string{"", "k"} {
		rec := w.spend(token, endpointWrite, key)
		endpointRefused(t, rec, 503, "temporarily_unavailable")
		require.Equal(t, "1", rec.Header().Get("Retry-After"))
		require.NotContains(t, rec.Body.String(), "disk")
		require.Equal(t, 400, w.spend("bhst_forged", endpointWrite, key).Code)
	}
	require.Contains(t, w.logged(), "the disk is full")
	w.store.failApply.Store(nil)
	w.store.failGet.Store(nil)
	require.Equal(t, 200, w.spend(token, endpointWrite, "k").Code)
}

// P3: one key is one use, and the last use has one winner, however many ask at once.
func TestUseTogether(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	require.NoError(t, w.use(token))
	race := func(key func(i int) string) (codes [64]int) {
		var wg sync.WaitGroup
		for i := range codes {
			wg.Go(func() { codes[i] = w.spend(token, endpointWrite, key(i)).Code })
		}
		wg.Wait()
		return codes
	}
	for _, code := range race(func(int) string { return "same" }) {
		require.Equal(t, 200, code)
	}
	won := 0
	for _, code := range race(func(i int) string { return fmt.Sprint("own", i) }) {
		if code == 200 {
			won++
		} else {
			require.Equal(t, 400, code)
		}
	}
	require.Equal(t, 1, won)
}

// An app's own key, at Require, is none of a resource server's, and the other way round.
func TestUseKeysAreTheClients(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	require.Equal(t, 200, w.spend(token, endpointWrite, "k").Code)
	d, err := w.engine.Prepare(context.Background(), token, scope.MustParse(endpointWrite))
	require.NoError(t, err)
	again, err := d.SpendOnce(context.Background(), "k", [32]byte{})
	require.NoError(t, err)
	require.False(t, again)
	require.Contains(t, w.introspect("probe", endpointSecret, token), `"uses_left":1`)
}
