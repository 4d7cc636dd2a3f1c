package authz_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
)

const (
	exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessType    = "urn:ietf:params:oauth:token-type:access_token"
)

func exchangeForm(token string, more ...string) url.Values {
	form := url.Values{"grant_type": {exchangeGrant}, "subject_token": {token}, "subject_token_type": {accessType}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
		if more[i+1] == "-" {
			form.Del(more[i])
		}
	}
	return form
}

func (w *endpointWorld) tokenExchange(app, secret, token string, more ...string) *httptest.ResponseRecorder {
	return w.post("/oauth2/token", app, secret, exchangeForm(token, more...))
}

func (w *endpointWorld) exchanged(app, secret, token string, more ...string) map[string]any {
	w.t.Helper()
	rec := w.tokenExchange(app, secret, token, more...)
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(w.t, "no-store", rec.Header().Get("Cache-Control"))
	return endpointJSON(w.t, rec)
}

func socialOperation(domain string, uses float64, actions ...any) []any {
	d := map[string]any{"type": "social_operation", "locations": []any{endpointIssuer}, "domain": domain, "actions": actions}
	if uses > 0 {
		d["uses"] = uses
	}
	return []any{d}
}

// RFC 8693 §2.2.1: the answer says what was issued, and RFC 9396 §7 what it is for.
func TestExchange(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	body := w.exchanged("probe", endpointSecret, token, "scope", "group:42/thread:7/message.write", "expires_in", "60",
		"authorization_details", `[{"type":"social_operation","uses":2}]`, "audience", endpointIssuer, "requested_token_type", accessType)
	child, id := body["access_token"].(string), body["grant_id"].(string)
	require.Equal(t, map[string]any{
		"access_token": child, "issued_token_type": accessType, "token_type": "Bearer", "expires_in": 60.0, "scope": "group:42/thread:7/message.write",
		"grant_id": id, "uses": 2.0, "domain": "group:42/thread:7", "sub": w.engine.Name("probe", "zhang-san"),
		"authorization_details": socialOperation("group:42/thread:7", 2, "message.write"),
	}, body)

	// What is not said is as the token has it; the other app knows the account by another name, and who acts is told.
	body = w.exchanged("other", "other-secret", child, "resource", endpointIssuer)
	own := body["access_token"].(string)
	require.Equal(t, map[string]any{
		"access_token": own, "issued_token_type": accessType, "token_type": "Bearer", "expires_in": 60.0, "scope": "group:42/thread:7/message.write",
		"grant_id": body["grant_id"], "uses": 2.0, "domain": "group:42/thread:7", "sub": w.engine.Name("other", "zhang-san"),
		"authorization_details": socialOperation("group:42/thread:7", 2, "message.write"),
		"act":                   map[string]any{"sub": "other", "act": map[string]any{"sub": "probe"}},
	}, body)
	require.NotEqual(t, w.engine.Name("other", "zhang-san"), w.engine.Name("probe", "zhang-san"))
	d, err := w.engine.Use(context.Background(), own, scope.MustParse("group:42/thread:7/message.write"))
	require.NoError(t, err)
	require.Equal(t, []any{"zhang-san", "other", 1}, []any{d.Account, d.App, d.Left})

	// By authorization_details alone.
	body = w.exchanged("other", "other-secret", token, "authorization_details",
		`[{"type":"social_operation","locations":["`+endpointIssuer+`"],"domain":"group:42/thread:1","actions":["message.write"],"uses":1}]`)
	require.Equal(t, socialOperation("group:42/thread:1", 1, "message.write"), body["authorization_details"])
	body = w.exchanged("probe", endpointSecret, token)
	require.Equal(t, "group:42/member.read group:42/message.write", body["scope"])
	require.Equal(t, 2.0, body["uses"], "as many as are left")

	t.Run("unlimited", func(t *testing.T) {
		_, token, err := w.engine.Redeem(context.Background(), "probe", w.emit(grant.Command, "").Code)
		require.NoError(t, err)
		body := w.exchanged("probe", endpointSecret, token.Reveal())
		require.NotContains(t, body, "uses")
		require.Equal(t, socialOperation("group:42", 0, "message.write"), body["authorization_details"])
	})
	require.Empty(t, w.logged())
}

func TestExchangeMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	endpointCheckMalformed(t, w, "/oauth2/token", exchangeForm(token).Encode())
	for name, row := range map[string]struct {
		code string
		more []string
	}{
		"no subject_token":             {"invalid_request", []string{"subject_token", "-"}},
		"no subject_token_type":        {"invalid_request", []string{"subject_token_type", "-"}},
		"another subject_token_type":   {"invalid_request", []string{"subject_token_type", "urn:ietf:params:oauth:token-type:jwt"}},
		"another requested_token_type": {"invalid_request", []string{"requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"}},
		"an actor_token":               {"invalid_request", []string{"actor_token", token, "actor_token_type", accessType}},
		"an actor_token_type":          {"invalid_request", []string{"actor_token_type", accessType}},
		"another audience":             {"invalid_target", []string{"audience", "https://another.example"}},
		"another resource":             {"invalid_target", []string{"resource", endpointIssuer + "/groups"}},
		"two resources":                {"invalid_target", []string{"resource", endpointIssuer + " " + endpointIssuer}},
		"no number of seconds":         {"invalid_request", []string{"expires_in", "1m"}},
		"no time at all":               {"invalid_request", []string{"expires_in", "0"}},
		"time that has gone":           {"invalid_request", []string{"expires_in", "-1"}},
		"more time than there is":      {"invalid_scope", []string{"expires_in", "601"}},
		"time without end":             {"invalid_request", []string{"expires_in", strings.Repeat("9", 40)}},
		"a scope that is none":         {"invalid_scope", []string{"scope", "openid"}},
		"scopes of two domains":        {"invalid_scope", []string{"scope", "group:42/message.write group:42/thread:1/member.read"}},
		"a wider scope":                {"invalid_scope", []string{"scope", "group:42/message.write group:42/file.write"}},
		"a scope elsewhere":            {"invalid_scope", []string{"scope", "group:43/message.write"}},
		"an action of nobody":          {"invalid_scope", []string{"authorization_details", `[{"type":"social_operation","actions":["message.erase"]}]`}},
		"a wider domain":               {"invalid_scope", []string{"authorization_details", `[{"type":"social_operation","domain":"server:1"}]`}},
		"more uses":                    {"invalid_scope", []string{"authorization_details", `[{"type":"social_operation","uses":4}]`}},
		"two answers to one question":  {"invalid_authorization_details", []string{"scope", "group:42/message.write", "authorization_details", `[{"type":"social_operation","actions":["member.read"]}]`}},
		"and to another":               {"invalid_authorization_details", []string{"scope", "group:42/message.write", "authorization_details", `[{"type":"social_operation","domain":"group:42/thread:1"}]`}},
		"details without a text":       {"invalid_authorization_details", []string{"authorization_details", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			endpointRefused(t, w.tokenExchange("probe", endpointSecret, token, row.more...), 400, row.code)
		})
	}
	require.Equal(t, "group:42/message.write", w.exchanged("probe", endpointSecret, token, "scope", "group:42/message.write",
		"authorization_details", `[{"type":"social_operation","actions":["message.write"],"domain":"group:42"}]`)["scope"])
	require.Empty(t, w.logged())
}

// RFC 8693 §2.2.2: what is wrong with the token is invalid_request. Who may exchange it hears why; all others get what a
// forgery gets, to the byte, and after the same work: the store, which fails here, is asked by neither.
func TestExchangeHonest(t *testing.T) {
	w := newEndpointWorld(t)
	late := w.token("probe")
	w.advance(10 * time.Minute)
	used, revoked, bystander := w.token("probe"), w.token("probe"), w.token("other")
	for range 3 {
		require.NoError(t, w.use(used))
	}
	require.NoError(t, w.engine.RevokeToken(context.Background(), "probe", grant.NewSecret(revoked)))
	for token, why := range map[string]string{late: "expired", used: "no uses left", revoked: "revoked"} {
		for _, who := range [][2]string{{"probe", endpointSecret}, {"other", "other-secret"}} {
			require.Contains(t, endpointRefused(t, w.tokenExchange(who[0], who[1], token), 400, "invalid_request"), why)
		}
	}
	live := w.token("probe")
	child := w.exchanged("other", "other-secret", live)["access_token"].(string)
	var cause error = endpointUnhashable{"disk"}
	w.store.failGet.Store(&cause)
	w.store.failApply.Store(&cause)
	answers := map[string]bool{}
	for _, c := range [][3]string{
		{"probe", endpointSecret, "x"}, {"probe", endpointSecret, "bhst_" + strings.Repeat("A", 300)}, {"probe", endpointSecret, live[:len(live)-1]},
		{"rs", "rs-secret", live}, {"rs", "rs-secret", late}, {"rs", "rs-secret", revoked}, {"rs", "rs-secret", used}, {"rs", "rs-secret", child},
		{"probe", endpointSecret, child}, {"probe", endpointSecret, bystander}, {"probe", endpointSecret, "bhat_" + strings.Repeat("A", 80)},
	} {
		rec := w.tokenExchange(c[0], c[1], c[2], "scope", "group:1/message.write")
		endpointRefused(t, rec, 400, "invalid_request")
		answers[fmt.Sprint(rec.Code, rec.Header(), rec.Body)] = true
	}
	require.Len(t, answers, 1)
	require.Empty(t, w.logged())
	endpointRefused(t, w.tokenExchange("other", "other-secret", live), 503, "temporarily_unavailable")
	w.store.failGet.Store(nil)
	endpointRefused(t, w.tokenExchange("other", "other-secret", live), 503, "temporarily_unavailable")
	w.store.failApply.Store(nil)

	// Neither a code nor a token of client_credentials is a subject.
	for _, token := range []string{w.code("probe"), w.accessToken("probe", endpointSecret)} {
		endpointRefused(t, w.tokenExchange("probe", endpointSecret, token), 400, "invalid_request")
	}
	denied := fmt.Errorf("%w: has left", grant.ErrDenied)
	w.permit.Store(&denied)
	endpointRefused(t, w.tokenExchange("probe", endpointSecret, live), 400, "invalid_scope")
	unknown := errors.New("database is down, says admin")
	w.permit.Store(&unknown)
	endpointRefused(t, w.tokenExchange("probe", endpointSecret, live), 503, "temporarily_unavailable")
	w.permit.Store(nil)
	for i := 0; ; i++ {
		if rec := w.tokenExchange("probe", endpointSecret, live); rec.Code != http.StatusOK {
			require.Contains(t, endpointRefused(t, rec, 400, "invalid_request"), "as often as it may be")
			require.Equal(t, 63, i)
			break
		}
	}
}

// Without its key a token is not exchanged, either.
func TestExchangeOfBoundToken(t *testing.T) {
	w := newEndpointWorld(t)
	_, token, err := w.engine.RedeemFunc(context.Background(), "probe", grant.NewSecret(w.code("probe")), func(g *grant.Grant) error { g.Key = "thumbprint"; return nil })
	require.NoError(t, err)
	for _, who := range [][2]string{{"probe", endpointSecret}, {"other", "other-secret"}} {
		require.Contains(t, endpointRefused(t, w.tokenExchange(who[0], who[1], token.Reveal()), 400, "invalid_request"), "bound to a key")
	}
	said := w.introspect("probe", endpointSecret, token.Reveal())
	require.Contains(t, said, `"token_type":"DPoP"`)
	require.Contains(t, said, `"cnf":{"jkt":"thumbprint"}`)
}

// RFC 7662 and RFC 8693 §4.1: who acts, with those that it has the token from nested in it; and what is left.
func TestIntrospectExchanged(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	child := w.exchanged("other", "other-secret", token)["access_token"].(string)
	grandchild := w.exchanged("other", "other-secret", child, "authorization_details", `[{"type":"social_operation","domain":"group:42/thread:7","uses":3}]`)["access_token"].(string)
	var said map[string]any
	require.NoError(t, json.Unmarshal([]byte(w.introspect("rs", "rs-secret", grandchild)), &said))
	require.Equal(t, map[string]any{"sub": "other", "act": map[string]any{"sub": "probe"}}, said["act"])
	require.Equal(t, socialOperation("group:42/thread:7", 3, "message.write"), said["authorization_details"])
	require.Equal(t, []any{"other", "zhang-san", w.engine.Name("other", "zhang-san"), 3.0}, []any{said["client_id"], said["username"], said["sub"], said["uses_left"]})
	require.NoError(t, w.use(token))
	require.NoError(t, json.Unmarshal([]byte(w.introspect("other", "other-secret", grandchild)), &said))
	require.Equal(t, 2.0, said["uses_left"], "the least along the way")
	require.Equal(t, socialOperation("group:42/thread:7", 2, "message.write"), said["authorization_details"])

	// P10: the app that it was derived from is a stranger to it; and what is not told is not looked up.
	require.Equal(t, endpointInactive, w.introspect("probe", endpointSecret, child))
	require.Equal(t, endpointInactive, w.introspect("other", "other-secret", token))
}

// Same answer and same work for what is no token and what is not the caller's: neither reaches the store, which fails
// here, nor Permit.
func TestIntrospectForeign(t *testing.T) {
	w := newEndpointWorld(t)
	token, late := w.token("probe"), w.token("probe")
	unknown := errors.New("must not be asked")
	w.permit.Store(&unknown)
	w.store.failGet.Store(&unknown)
	answers := map[string]bool{}
	for _, text := range []string{token, late, token[:len(token)-1], "bhst_" + strings.Repeat("A", 300), "x"} {
		rec := w.post("/oauth2/introspect", "other", "other-secret", url.Values{"token": {text}})
		answers[fmt.Sprint(rec.Code, rec.Header(), rec.Body)] = true
	}
	require.Len(t, answers, 1)
	require.Equal(t, endpointInactive, w.introspect("other", "other-secret", token))
	require.Empty(t, w.logged())
}

// RFC 7009 §2.1: with a token end those that were exchanged for it; one of those ends alone, by its own client.
func TestRevokeExchanged(t *testing.T) {
	w := newEndpointWorld(t)
	token := w.token("probe")
	child := w.exchanged("other", "other-secret", token)["access_token"].(string)
	sibling := w.exchanged("other", "other-secret", token)["access_token"].(string)
	grandchild := w.exchanged("other", "other-secret", child)["access_token"].(string)
	w.revoke("probe", endpointSecret, child)
	require.NoError(t, w.use(child), "it is another client's")
	w.revoke("other", "other-secret", child)
	require.ErrorIs(t, w.use(child), grant.ErrRevoked)
	require.ErrorIs(t, w.use(grandchild), grant.ErrRevoked)
	require.NoError(t, w.use(sibling))
	w.revoke("probe", endpointSecret, token)
	require.ErrorIs(t, w.use(sibling), grant.ErrRevoked)
	require.ErrorIs(t, w.use(token), grant.ErrRevoked)
}

// What a code is redeemed for is asked for by authorization_details as by scope: exactly, or not at all (RFC 9396 §6).
func TestTokenDetails(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.code("probe")
	for _, text := range []string{"x", `[{"type":"social_operation","domain":"group:43"}]`, `[{"type":"social_operation","actions":["message.write"]}]`, `[{"type":"social_operation","uses":2}]`} {
		endpointRefused(t, w.redeem(code, "authorization_details", text), 400, "invalid_authorization_details")
	}
	rec := w.redeem(code, "authorization_details", `[{"type":"social_operation","domain":"group:42","actions":["message.write","member.read"],"uses":3}]`)
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(t, socialOperation("group:42", 3, "member.read", "message.write"), endpointJSON(t, rec)["authorization_details"])
	form := url.Values{"grant_type": {"client_credentials"}, "authorization_details": {`[{"type":"social_operation"}]`}}
	endpointRefused(t, w.post("/oauth2/token", "probe", endpointSecret, form), 400, "invalid_authorization_details")
}

// RFC 8707 §2: whatever is asked for, it is for this server.
func TestTokenResource(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.code("probe")
	endpointRefused(t, w.redeem(code, "resource", "https://another.example"), 400, "invalid_target")
	require.Equal(t, http.StatusOK, w.redeem(code, "resource", endpointIssuer).Code)
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {"https://another.example"}}
	endpointRefused(t, w.post("/oauth2/token", "probe", endpointSecret, form), 400, "invalid_target")
}

// P3: 64 requests for the last use, through two exchanged tokens, on two servers over every store: one of them is let
// through.
func TestP3ExchangedLastUse(t *testing.T) { stores.Everywhere(t, testP3ExchangedLastUse) }

func testP3ExchangedLastUse(t *testing.T, s stores.Maker) {
	node := s.New(t)
	var ws [2]*authz.Server
	for i := range ws {
		var err error
		ws[i], err = authz.New(authz.Config{
			Issuer: endpointIssuer, Store: node(), Key: grant.NewSecret(strings.Repeat("k", 32)), Apps: endpointApps(),
			Permit: func(context.Context, grant.Access) error { return nil },
			Triggers: []grant.Trigger{{App: "probe", On: grant.Mention, In: "group:*", Allow: []string{"message.write"},
				Uses: 1, Delegates: []string{"other"}}},
		})
		require.NoError(t, err)
	}
	issued, err := ws[0].Emit(t.Context(), grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "probe", Domain: scope.MustDomain("group:42")})
	require.NoError(t, err)
	_, token, err := ws[0].Engine().Redeem(t.Context(), "probe", issued[0].Code)
	require.NoError(t, err)
	var children [2]string
	for i, who := range [][2]string{{"probe", endpointSecret}, {"other", "other-secret"}} {
		mux := http.NewServeMux()
		ws[i].Routes(mux.Handle)
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, endpointRequest("POST", "/oauth2/token", exchangeForm(token.Reveal()).Encode(), "Authorization", endpointBasic(who[0], who[1])))
		require.Equal(t, http.StatusOK, rec.Code, rec.Body)
		children[i] = endpointJSON(t, rec)["access_token"].(string)
	}
	passed := make(chan bool, 64)
	gate := make(chan struct{})
	for i := range 64 {
		h := ws[i%2].Require("group:{group}/message.write")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
		r := httptest.NewRequest("POST", "/groups/42", nil)
		r.SetPathValue("group", "42")
		r.Header.Set("Authorization", "Bearer "+children[i/2%2])
		go func() {
			<-gate
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code != http.StatusNoContent && (rec.Code != http.StatusUnauthorized || !strings.Contains(rec.Body.String(), "used_up")) {
				t.Error(rec.Code, rec.Body)
			}
			passed <- rec.Code == http.StatusNoContent
		}()
	}
	close(gate)
	n := 0
	for range 64 {
		if <-passed {
			n++
		}
	}
	require.Equal(t, 1, n)
}

// An assistant has a translator do a part of its work: it narrows its token, hands it over, and the translator exchanges
// it for one of its own.
func ExampleTokenEndpoint_exchange() {
	az, err := authz.New(authz.Config{
		Issuer: "https://social.example",
		Permit: mayDo,
		Apps: []authz.App{
			{ID: "assistant", Secret: secret, Actions: []string{"message.write", "member.read"}},
			{ID: "translator", Secret: secret, Actions: []string{"message.write"}},
		},
		Triggers: []grant.Trigger{{App: "assistant", On: grant.Mention, In: "group:*", Allow: []string{"message.write", "member.read"}, Uses: 5,
			Delegates: []string{"translator"}}},
	})
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	az.Routes(mux.Handle)
	exchange := func(app, token string, form url.Values) map[string]any {
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
		form.Set("subject_token", token)
		form.Set("subject_token_type", "urn:ietf:params:oauth:token-type:access_token")
		r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth(app, url.QueryEscape(secret.Reveal()))
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, r)
		var answer map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
			panic(err)
		}
		return answer
	}
	issued, err := az.Emit(ctx, grant.Event{ID: "message-1", Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "assistant"})
	if err != nil {
		panic(err)
	}
	_, token, err := az.Engine().Redeem(ctx, "assistant", issued[0].Code)
	if err != nil {
		panic(err)
	}
	handed := exchange("assistant", token.Reveal(), url.Values{"scope": {"group:42/thread:7/message.write"}, "expires_in": {"60"}})
	fmt.Println(handed["scope"], handed["expires_in"], handed["uses"])
	own := exchange("translator", handed["access_token"].(string), url.Values{})
	act, err := json.Marshal(own["act"])
	fmt.Println(own["scope"], string(act), err)
	fmt.Println(exchange("translator", own["access_token"].(string), url.Values{"scope": {"group:42/message.write"}})["error"])
	// Output:
	// group:42/thread:7/message.write 60 5
	// group:42/thread:7/message.write {"act":{"sub":"assistant"},"sub":"translator"} <nil>
	// invalid_scope
}
