package authz_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

func TestTokenRedeem(t *testing.T) {
	w := newEndpointWorld(t)
	g := w.emit(grant.Mention, "probe")
	rec := w.redeem(g.Code.Reveal())
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	require.Equal(t, "no-cache", rec.Header().Get("Pragma"))
	body := endpointJSON(t, rec)
	token := body["access_token"].(string)
	require.Equal(t, map[string]any{
		"access_token": token, "token_type": "Bearer", "expires_in": 600.0, "scope": "group:42/member.read group:42/message.write",
		"grant_id": g.ID, "uses": 3.0, "domain": "group:42", "sub": w.engine.Name("probe", "zhang-san"),
		"authorization_details": socialOperation("group:42", 3, "member.read", "message.write"),
	}, body)
	require.NotEqual(t, "zhang-san", body["sub"])
	require.NoError(t, w.use(token))

	t.Run("unlimited", func(t *testing.T) {
		body := endpointJSON(t, w.redeem(w.emit(grant.Command, "").Code.Reveal()))
		require.NotContains(t, body, "uses")
	})
}

func TestTokenMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.code("probe")
	endpointCheckMalformed(t, w, "/oauth2/token", url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {code}}.Encode())
	require.Equal(t, http.StatusOK, w.redeem(code).Code, "the code has survived all that")
	endpointCheckTaken(t, w, "/oauth2/token", func() string {
		return url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {w.code("probe")}}.Encode()
	})
}

func TestTokenGrantTypes(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.code("probe")
	for _, row := range []struct {
		name, body, code string
	}{
		{"no grant_type", "code=" + code, "invalid_request"},
		{"an empty grant_type", "grant_type=&code=" + code, "invalid_request"},
		{"an unknown one", "grant_type=x&code=" + code, "unsupported_grant_type"},
		{"another case", "grant_type=URN:BEHEST:GRANT-TYPE:OPERATION&code=" + code, "unsupported_grant_type"},
		{"with a space", "grant_type=" + authz.GrantTypeOperation + "+&code=" + code, "unsupported_grant_type"},
		{"very long", "grant_type=" + strings.Repeat("x", 60000), "unsupported_grant_type"},
		{"no code", "grant_type=" + authz.GrantTypeOperation, "invalid_request"},
		{"an empty code", "grant_type=" + authz.GrantTypeOperation + "&code=", "invalid_request"},
		{"garbage", "grant_type=" + authz.GrantTypeOperation + "&code=x", "invalid_grant"},
		{"a prefix alone", "grant_type=" + authz.GrantTypeOperation + "&code=bhsc_", "invalid_grant"},
		{"a shortened code", "grant_type=" + authz.GrantTypeOperation + "&code=" + code[:len(code)-1], "invalid_grant"},
		{"a longer code", "grant_type=" + authz.GrantTypeOperation + "&code=" + code + "A", "invalid_grant"},
		{"a line break in the code", "grant_type=" + authz.GrantTypeOperation + "&code=" + code[:20] + "%0a" + code[20:], "invalid_grant"},
		{"a huge code", "grant_type=" + authz.GrantTypeOperation + "&code=bhsc_" + strings.Repeat("A", 60000), "invalid_grant"},
		{"a token as a code", "grant_type=" + authz.GrantTypeOperation + "&code=" + w.token("probe"), "invalid_grant"},
	} {
		t.Run(row.name, func(t *testing.T) {
			endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", row.body, "Authorization", endpointBasic("probe", endpointSecret))), 400, row.code)
			// The client is authenticated before the grant is judged.
			endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token", row.body, "Authorization", endpointBasic("probe", "wrong"))), 401, "invalid_client")
		})
	}
	require.Equal(t, http.StatusOK, w.redeem(code).Code)
	require.Empty(t, w.logged())
}

func TestTokenScope(t *testing.T) {
	w := newEndpointWorld(t)
	code := w.code("probe")
	for _, text := range []string{
		"group:42/message.write", // less
		"group:42/member.read group:42/message.write group:42/reaction.write", // more
		"group:42/thread:1/member.read group:42/thread:1/message.write",       // below
		"group:43/member.read group:43/message.write",                         // elsewhere
		"openid", "group:42", " ", "  group:42/member.read", "group:42/member.read\tgroup:42/message.write", "日本", strings.Repeat("a", 60000),
	} {
		endpointRefused(t, w.redeem(code, "scope", text), 400, "invalid_scope")
	}
	foreign := w.code("other")
	endpointRefused(t, w.redeem(foreign, "scope", "group:42/message.write"), 400, "invalid_grant")
	endpointRefused(t, w.redeem("bhsc_x", "scope", "group:42/message.write"), 400, "invalid_grant")

	rec := w.redeem(code, "scope", "group:42/message.write group:42/member.read") // in any order
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(t, "group:42/member.read group:42/message.write", endpointJSON(t, rec)["scope"])
	endpointRefused(t, w.redeem(code, "scope", "group:42/message.write group:42/member.read"), 400, "invalid_grant")
	require.Equal(t, http.StatusOK, w.redeem(w.code("probe"), "scope", "").Code, "RFC 6749 §3.2: without a value it is as if left out")
	require.Empty(t, w.logged())
}

// P10: the code's own app learns why, a stranger gets one and the same answer.
func TestTokenHonest(t *testing.T) {
	w := newEndpointWorld(t)
	stranger := endpointRefused(t, w.redeem("bhsc_forged"), 400, "invalid_grant")
	said := func(code, app, secret string) string {
		rec := w.post("/oauth2/token", app, secret, url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {code}})
		return endpointRefused(t, rec, 400, "invalid_grant")
	}
	used, revoked, late, live := w.code("probe"), w.emit(grant.Mention, "probe"), w.code("probe"), w.code("probe")
	require.Equal(t, http.StatusOK, w.redeem(used).Code)
	require.NoError(t, w.engine.Revoke(context.Background(), "zhang-san", revoked.ID))
	require.Equal(t, stranger, said(live, "other", "other-secret"))
	require.Equal(t, stranger, said(live, "rs", "rs-secret"))
	require.Equal(t, http.StatusOK, w.redeem(live).Code, "a stranger's try costs the app nothing")
	require.Contains(t, said(revoked.Code.Reveal(), "probe", endpointSecret), "revoked")
	w.advance(time.Minute)
	require.Contains(t, said(used, "probe", endpointSecret), "redeemed before")
	require.Contains(t, said(late, "probe", endpointSecret), "expired")
	for _, code := range []string{used, revoked.Code.Reveal(), late} {
		require.Equal(t, stranger, said(code, "other", "other-secret"))
	}
	require.Empty(t, w.logged())
}

// P3, over HTTP: 64 at once, one success.
func TestTokenRedeemOnce(t *testing.T) {
	w := newEndpointWorld(t)
	srv := httptest.NewServer(w.mux)
	defer srv.Close()
	for _, more := range []url.Values{{}, {"scope": {"group:42/message.write group:42/member.read"}}} {
		form := url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {w.code("probe")}, "scope": more["scope"]}
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		for range 64 {
			wg.Go(func() {
				req, _ := http.NewRequest("POST", srv.URL+"/oauth2/token", strings.NewReader(form.Encode()))
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				req.Header.Set("Authorization", endpointBasic("probe", endpointSecret))
				what := "?"
				if resp, err := srv.Client().Do(req); err != nil {
					what = err.Error()
				} else {
					var body struct {
						Error string `json:"error"`
					}
					if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
						body.Error = err.Error()
					}
					resp.Body.Close()
					what = fmt.Sprint(resp.StatusCode, " ", body.Error)
				}
				mu.Lock()
				defer mu.Unlock()
				got[what]++
			})
		}
		wg.Wait()
		require.Equal(t, map[string]int{"200 ": 1, "400 invalid_grant": 63}, got)
	}
}

func TestTokenStoreFails(t *testing.T) {
	for _, cause := range []error{errors.New("disk on fire"), fmt.Errorf("wrapped: %w", io.ErrUnexpectedEOF), endpointUnhashable{"disk", "fire"}, fmt.Errorf("deep: %w", endpointUnhashable{"x"})} {
		w := newEndpointWorld(t)
		code, client := w.code("probe"), url.Values{"grant_type": {"client_credentials"}}
		exact := "group:42/message.write group:42/member.read"
		w.store.failApply.Store(&cause)
		endpointRefused(t, w.redeem(code), 503, "temporarily_unavailable")
		endpointRefused(t, w.redeem(code, "scope", exact), 503, "temporarily_unavailable")
		rec := w.post("/oauth2/token", "probe", endpointSecret, client)
		endpointRefused(t, rec, 503, "temporarily_unavailable")
		require.NotContains(t, rec.Body.String(), "disk")
		require.Equal(t, 3, strings.Count(w.logged(), "request failed"))
		require.Contains(t, w.logged(), cause.Error()[:4], "the cause goes to the log")
		w.store.failGet.Store(&cause)
		endpointRefused(t, w.redeem(code), 503, "temporarily_unavailable")
		// Nothing reaches the store before the client is known.
		endpointRefused(t, w.post("/oauth2/token", "probe", "wrong", client), 401, "invalid_client")
		w.store.failApply.Store(nil)
		w.store.failGet.Store(nil)
		require.Equal(t, http.StatusOK, w.redeem(code, "scope", exact).Code, "nothing was spent")
	}
}

func TestTokenClientGoesAway(t *testing.T) {
	w := newEndpointWorld(t)
	gone := context.Canceled
	w.store.failApply.Store(&gone)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, body := range []string{"grant_type=client_credentials", "grant_type=" + authz.GrantTypeOperation + "&code=" + w.codeDespite()} {
		rec := w.do(endpointRequest("POST", "/oauth2/token", body, "Authorization", endpointBasic("probe", endpointSecret)).WithContext(ctx))
		require.Equal(t, 503, rec.Code)
	}
	require.Empty(t, w.logged(), "nobody's trouble")
}

// codeDespite makes a code while Apply is set to fail.
func (w *endpointWorld) codeDespite() string {
	fail := w.store.failApply.Swap(nil)
	defer w.store.failApply.Store(fail)
	return w.code("probe")
}

func TestTokenClientCredentials(t *testing.T) {
	w := newEndpointWorld(t)
	rec := w.post("/oauth2/token", "probe", endpointSecret, url.Values{"grant_type": {"client_credentials"}})
	require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	body := endpointJSON(t, rec)
	token := body["access_token"].(string)
	require.Equal(t, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 600.0}, body)
	require.Regexp(t, `^bhat_[A-Za-z0-9_-]{70,}$`, token)
	require.ErrorIs(t, w.use(token), grant.ErrUnknown, "it is no delegation token")

	// Its own client may ask about it, and so may a resource server.
	for _, c := range [][2]string{{"probe", endpointSecret}, {"rs", "rs-secret"}} {
		said := endpointJSON(t, w.post("/oauth2/introspect", c[0], c[1], url.Values{"token": {token}}))
		require.Equal(t, map[string]any{"active": true, "client_id": "probe", "token_type": "Bearer", "iss": endpointIssuer,
			"iat": float64(w.now().Unix()), "exp": float64(w.now().Add(10 * time.Minute).Unix())}, said)
	}
	// P6: the store has its hash alone.
	found, err := w.mem.List(context.Background(), store.Query{Kind: "access"})
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "probe", found[0].App)
	require.NotContains(t, fmt.Sprintf("%+v %s", found[0], found[0].Data), token[5:])

	clients, err := authz.NewClients(endpointApps()[1:])
	require.NoError(t, err)
	rec = httptest.NewRecorder()
	(&authz.IntrospectionEndpoint{Engine: w.engine, Clients: clients, Store: w.store, Now: w.now}).ServeHTTP(rec,
		endpointRequest("POST", "/", "token="+token, "Authorization", endpointBasic("rs", "rs-secret")))
	require.JSONEq(t, `{"active":false}`, rec.Body.String(), "a client that is registered no more has no tokens")
}

func TestTokenClientCredentialsMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	endpointCheckMalformed(t, w, "/oauth2/token", "grant_type=client_credentials")
	found, err := w.mem.List(context.Background(), store.Query{Kind: "access"})
	require.NoError(t, err)
	require.Empty(t, found)
	endpointCheckTaken(t, w, "/oauth2/token", func() string { return "grant_type=client_credentials" })
}

func TestTokenGolangOAuth2(t *testing.T) {
	w := newEndpointWorld(t)
	srv := httptest.NewServer(w.mux)
	defer srv.Close()
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, srv.Client())
	for name, style := range map[string]oauth2.AuthStyle{"detected": oauth2.AuthStyleAutoDetect, "header": oauth2.AuthStyleInHeader, "body": oauth2.AuthStyleInParams} {
		t.Run(name, func(t *testing.T) {
			config := clientcredentials.Config{ClientID: "probe", ClientSecret: endpointSecret, TokenURL: srv.URL + "/oauth2/token", AuthStyle: style}
			w.emit(grant.Mention, "probe")
			resp, err := config.Client(ctx).Get(srv.URL + "/oauth2/grants")
			require.NoError(t, err)
			defer resp.Body.Close()
			require.Equal(t, http.StatusOK, resp.StatusCode)
			var answer struct{ Grants []struct{ ID string } }
			require.NoError(t, json.NewDecoder(resp.Body).Decode(&answer))
			require.Len(t, answer.Grants, 1)
		})
	}
	config := clientcredentials.Config{ClientID: "probe", ClientSecret: "wrong", TokenURL: srv.URL + "/oauth2/token", AuthStyle: oauth2.AuthStyleInHeader}
	_, err := config.Token(ctx)
	var refused *oauth2.RetrieveError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "invalid_client", refused.ErrorCode)
}

// The holes of go-oauth2 v4.5.4 that could be reached by client_credentials, each by its name; more are in holes_test.go.
func TestHole(t *testing.T) {
	auth := endpointBasic("probe", endpointSecret)
	post := func(w *endpointWorld, body string, header ...string) *httptest.ResponseRecorder {
		return w.do(endpointRequest("POST", "/oauth2/token", body, header...))
	}
	t.Run("any scope is accepted", func(t *testing.T) {
		w := newEndpointWorld(t)
		for _, s := range []string{"x", "group:42/message.write", "*", "openid", "+"} {
			endpointRefused(t, post(w, "grant_type=client_credentials&scope="+s, "Authorization", auth), 400, "invalid_scope")
		}
		rec := post(w, "grant_type=client_credentials&scope=", "Authorization", auth)
		require.Equal(t, http.StatusOK, rec.Code)
		require.NotContains(t, endpointJSON(t, rec), "scope")
	})
	t.Run("two tokens of one second are the same string", func(t *testing.T) {
		w := newEndpointWorld(t)
		seen := map[string]bool{}
		for range 100 {
			seen[w.accessToken("probe", endpointSecret)] = true
		}
		require.Len(t, seen, 100)
	})
	t.Run("without AccessTokenExp a token never expires", func(t *testing.T) {
		w := newEndpointWorld(t)
		token := w.accessToken("probe", endpointSecret)
		active := func() any {
			return endpointJSON(t, w.post("/oauth2/introspect", "probe", endpointSecret, url.Values{"token": {token}}))["active"]
		}
		w.advance(10*time.Minute - time.Microsecond)
		require.Equal(t, true, active())
		w.advance(time.Microsecond)
		require.Equal(t, false, active(), "and an expired token is no 500")
	})
	t.Run("secrets, parameters and tokens are accepted in the query", func(t *testing.T) {
		w := newEndpointWorld(t)
		query := url.Values{"grant_type": {"client_credentials"}, "client_id": {"probe"}, "client_secret": {endpointSecret}}.Encode()
		endpointRefused(t, w.do(endpointRequest("POST", "/oauth2/token?"+query, "")), 400, "invalid_request")
		endpointRefused(t, w.do(endpointRequest("GET", "/oauth2/token?"+query, "")), 405, "invalid_request")
		token := w.accessToken("probe", endpointSecret)
		endpointRefused(t, w.do(httptest.NewRequest("GET", "/oauth2/grants?access_token="+token, nil)), 400, "invalid_request")
	})
	t.Run("repeated parameters are accepted", func(t *testing.T) {
		w := newEndpointWorld(t)
		endpointRefused(t, post(w, "grant_type=client_credentials&grant_type=client_credentials", "Authorization", auth), 400, "invalid_request")
	})
	t.Run("Bearer is case-sensitive", func(t *testing.T) {
		w := newEndpointWorld(t)
		for _, scheme := range []string{"Bearer", "bearer", "BEARER"} {
			r := httptest.NewRequest("GET", "/oauth2/grants", nil)
			r.Header.Set("Authorization", scheme+" "+w.accessToken("probe", endpointSecret))
			require.Equal(t, http.StatusOK, w.do(r).Code)
		}
	})
	t.Run("Basic credentials are not form-decoded", func(t *testing.T) {
		w := newEndpointWorld(t)
		// openid-client percent-encodes even the "-".
		header := "Basic " + "cHJvYmU6czNjciUzQXQrJTJCJTI1JTI2JTJE" // probe:s3cr%3At+%2B%25%26%2D
		require.Equal(t, http.StatusOK, post(w, "grant_type=client_credentials", "Authorization", header).Code)
	})
	t.Run("unknown client is a 500, invalid_client has no challenge", func(t *testing.T) {
		w := newEndpointWorld(t)
		endpointRefused(t, post(w, "grant_type=client_credentials", "Authorization", endpointBasic("nobody", "x")), 401, "invalid_client")
	})
	t.Run("a wrapped error is a 500, one of unhashable type a panic", func(t *testing.T) {
		for _, cause := range []error{endpointUnhashable{"x"}, fmt.Errorf("wrapped: %w", io.EOF)} {
			w := newEndpointWorld(t)
			w.store.failApply.Store(&cause)
			endpointRefused(t, post(w, "grant_type=client_credentials", "Authorization", auth), 503, "temporarily_unavailable")
		}
	})
	t.Run("invalid_grant is 401", func(t *testing.T) {
		w := newEndpointWorld(t)
		endpointRefused(t, w.redeem("bhsc_x"), 400, "invalid_grant")
	})
	t.Run("tokens are stored in clear text", func(t *testing.T) {
		w := newEndpointWorld(t)
		token := w.accessToken("probe", endpointSecret)
		found, err := w.mem.List(context.Background(), store.Query{Kind: "access"})
		require.NoError(t, err)
		require.Len(t, found, 1)
		require.NotContains(t, found[0].ID+string(found[0].Data), token[5:])
	})
	t.Run("errors.Descriptions and the like are global: nothing is changed in them", func(t *testing.T) {
		w := newEndpointWorld(t)
		first := endpointRefused(t, post(w, "grant_type=client_credentials&scope=x", "Authorization", auth), 400, "invalid_scope")
		require.Equal(t, first, endpointRefused(t, post(w, "grant_type=client_credentials&scope=x", "Authorization", auth), 400, "invalid_scope"))
	})
}

func FuzzTokenEndpoint(f *testing.F) {
	w := newEndpointWorld(f)
	auth := endpointBasic("probe", endpointSecret)
	const form = "application/x-www-form-urlencoded"
	f.Add("POST", "", form, auth, "grant_type="+authz.GrantTypeOperation+"&code="+w.code("probe"))
	f.Add("POST", "", form, auth, "grant_type="+authz.GrantTypeOperation+"&code="+w.code("other")+"&scope=group:42/message.write")
	f.Add("POST", "", form, auth, "grant_type=client_credentials&scope=x")
	f.Add("POST", "", form, "", "grant_type=client_credentials&client_id=probe&client_secret="+url.QueryEscape(endpointSecret))
	f.Add("GET", "grant_type=x", "", "Basic !", "%zz")
	_, refresh := w.signedIn("zhang-san")
	f.Add("POST", "", form, auth, "grant_type=refresh_token&refresh_token="+refresh)
	f.Add("POST", "", form, auth, url.Values{"grant_type": {"authorization_code"}, "code": {w.consent("zhang-san")}, "redirect_uri": {signInRedirect}, "code_verifier": {signInVerifier}}.Encode())
	f.Fuzz(func(t *testing.T, method, query, contentType, authorization, body string) {
		r := &http.Request{Method: method, URL: &url.URL{Path: "/oauth2/token", RawQuery: query}, Header: http.Header{"Content-Type": {contentType}},
			Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Host: "social.example"}
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		rec := w.do(r)
		require.Less(t, rec.Code, 500, rec.Body)
		var answer map[string]any
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &answer), rec.Body)
		if rec.Code == http.StatusOK {
			require.NotEmpty(t, answer["access_token"])
		} else {
			endpointRefused(t, rec, rec.Code, answer["error"].(string))
		}
	})
}

// The endpoints are parts of their own: with an engine and a store they stand on any mux.
func ExampleTokenEndpoint() {
	st := store.NewMemory()
	engine, err := grant.NewEngine(grant.Config{
		Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)), // 32 random bytes, kept
		Permit:   func(context.Context, grant.Access) error { return nil },
		Apps:     []grant.App{{ID: "bookbot", Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	clients, err := authz.NewClients([]authz.App{{ID: "bookbot", Secret: grant.NewSecret("bookbot-secret")}})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/oauth2/token", &authz.TokenEndpoint{Engine: engine, Clients: clients, Store: st})

	grants, err := engine.Emit(context.Background(), grant.Event{
		ID: "m1", Operation: grant.Mention, Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "bookbot",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	form := url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {grants[0].Code.Reveal()}}
	for range 2 {
		r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth("bookbot", url.QueryEscape("bookbot-secret"))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		var answer struct {
			Scope, Error string
			Uses         int
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			fmt.Println(err)
			return
		}
		if answer.Error != "" {
			fmt.Println(w.Code, answer.Error)
			continue
		}
		fmt.Println(w.Code, answer.Scope, "uses:", answer.Uses)
	}
	// Output:
	// 200 group:42/message.write uses: 5
	// 400 invalid_grant
}
