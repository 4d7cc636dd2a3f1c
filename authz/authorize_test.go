package authz_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/store"
)

// RFC 7636, appendix B.
const (
	signInVerifier  = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	signInChallenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
	signInRedirect  = "https://probe.example/cb"
)

// signInQuery is a request without fault, changed: name, value, name, value, where a "-" takes the parameter away.
func signInQuery(change ...string) url.Values {
	q := url.Values{"response_type": {"code"}, "client_id": {"probe"}, "redirect_uri": {signInRedirect}, "state": {"s t&=ä"},
		"code_challenge": {signInChallenge}, "code_challenge_method": {"S256"}}
	for i := 0; i < len(change); i += 2 {
		if q.Set(change[i], change[i+1]); change[i+1] == "-" {
			q.Del(change[i])
		}
	}
	return q
}

// authorize is a browser's GET; account "": nobody is logged in.
func (w *endpointWorld) authorize(account, query string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/oauth2/authorize?"+query, nil)
	if account != "" {
		r.AddCookie(&http.Cookie{Name: "account", Value: account})
	}
	return w.do(r)
}

var signInToken = regexp.MustCompile(`name="token" value="([^"]*)"`)

// answer posts the form of the page, as a browser does; header is name, value.
func (w *endpointWorld) answer(account, query string, form url.Values, header ...string) *httptest.ResponseRecorder {
	r := endpointRequest("POST", "/oauth2/authorize?"+query, form.Encode(), header...)
	if account != "" {
		r.AddCookie(&http.Cookie{Name: "account", Value: account})
	}
	return w.do(r)
}

// formToken is that of the page.
func (w *endpointWorld) formToken(account, query string) string {
	w.t.Helper()
	rec := w.authorize(account, query)
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	found := signInToken.FindStringSubmatch(rec.Body.String())
	require.Len(w.t, found, 2, rec.Body)
	return found[1]
}

// consent is the whole way, to a code.
func (w *endpointWorld) consent(account string, change ...string) string {
	w.t.Helper()
	q := signInQuery(change...)
	rec := w.answer(account, q.Encode(), url.Values{"token": {w.formToken(account, q.Encode())}, "answer": {"yes"}}, "Sec-Fetch-Site", "same-origin", "Origin", "null")
	to := signInReturn(w.t, rec, q.Get("redirect_uri"))
	require.Equal(w.t, q.Get("state"), to.Get("state"))
	require.NotEmpty(w.t, to.Get("code"))
	return to.Get("code")
}

// signInReturn is what the app gets: checked for all that each answer has.
func signInReturn(t testing.TB, rec *httptest.ResponseRecorder, redirect string) url.Values {
	t.Helper()
	require.Equal(t, http.StatusSeeOther, rec.Code, rec.Body)
	to := rec.Header().Get("Location")
	sep := "?"
	if strings.Contains(redirect, "?") {
		sep = "&"
	}
	require.True(t, strings.HasPrefix(to, redirect+sep), to)
	u, err := url.Parse(to)
	require.NoError(t, err)
	q := u.Query()
	for name, values := range q {
		require.Len(t, values, 1, name)
	}
	require.Equal(t, endpointIssuer, q.Get("iss"), "RFC 9207")
	require.Equal(t, "no-referrer", rec.Header().Get("Referrer-Policy"))
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	require.Empty(t, rec.Body.String())
	return q
}

// signInPage is a page that tells people, and the app nothing.
func signInPage(t testing.TB, rec *httptest.ResponseRecorder, status int) string {
	t.Helper()
	require.Equal(t, status, rec.Code, rec.Body)
	h := rec.Header()
	require.Empty(t, h.Get("Location"))
	require.Equal(t, "text/html; charset=utf-8", h.Get("Content-Type"))
	require.Equal(t, "no-store", h.Get("Cache-Control"))
	require.Equal(t, "no-referrer", h.Get("Referrer-Policy"))
	require.Equal(t, "DENY", h.Get("X-Frame-Options"))
	require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"))
	policy := h.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "form-action "} {
		require.Contains(t, policy, part)
	}
	require.NotContains(t, policy, "unsafe")
	require.NotContains(t, rec.Body.String(), "<script")
	return rec.Body.String()
}

func (w *endpointWorld) signIns() []store.Record {
	w.t.Helper()
	found, err := w.mem.List(w.t.Context(), store.Query{Kind: "signin", Limit: store.MaxPage})
	require.NoError(w.t, err)
	return found
}

func TestAuthorizePage(t *testing.T) {
	w := newEndpointWorld(t)
	body := signInPage(t, w.authorize("zhang-san", signInQuery().Encode()), http.StatusOK)
	for _, text := range []string{"Sign in to", "probe", "probe.example", "zhang-san", `<form method="post">`, "does not see yours"} {
		require.Contains(t, body, text)
	}
	rec := w.authorize("zhang-san", signInQuery("scope", "profile", "redirect_uri", "http://127.0.0.1:54321/cb", "unknown", "x", "request_uri", "urn:x").Encode())
	require.Contains(t, signInPage(t, rec, http.StatusOK), "sees your name")
	require.Contains(t, rec.Header().Get("Content-Security-Policy"), "form-action 'self' http://127.0.0.1:54321")
	body = signInPage(t, w.authorize(`<script>alert(1)</script>`, signInQuery().Encode()), http.StatusOK)
	require.Contains(t, body, "&lt;script&gt;")
	rec = w.do(httptest.NewRequest("HEAD", "/oauth2/authorize?"+signInQuery().Encode(), nil))
	require.Equal(t, http.StatusSeeOther, rec.Code)
	for _, method := range []string{"PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} {
		rec := w.do(httptest.NewRequest(method, "/oauth2/authorize?"+signInQuery().Encode(), nil))
		endpointRefused(t, rec, 405, "invalid_request")
	}
	require.Empty(t, w.signIns(), "nothing is minted by GET")
	require.Empty(t, w.logged())
}

func TestAuthorizeLogin(t *testing.T) {
	w := newEndpointWorld(t)
	for _, rec := range []*httptest.ResponseRecorder{
		w.authorize("", signInQuery().Encode()),
		w.answer("", signInQuery().Encode(), url.Values{"answer": {"yes"}}),
	} {
		require.Equal(t, http.StatusSeeOther, rec.Code)
		to, err := url.Parse(rec.Header().Get("Location"))
		require.NoError(t, err)
		require.Equal(t, "/login", to.Path)
		require.Equal(t, "1", to.Query().Get("x"))
		back, err := url.Parse(to.Query().Get("return_to"))
		require.NoError(t, err)
		require.Equal(t, "/oauth2/authorize", back.Path)
		require.Equal(t, signInQuery(), back.Query())
		require.Empty(t, back.Host)
	}
	require.Equal(t, "login_required", signInReturn(t, w.authorize("", signInQuery("prompt", "none").Encode()), signInRedirect).Get("error"))
	require.Equal(t, "interaction_required", signInReturn(t, w.authorize("zhang-san", signInQuery("prompt", "none").Encode()), signInRedirect).Get("error"))
	require.Equal(t, http.StatusOK, w.authorize("zhang-san", signInQuery("prompt", "login consent").Encode()).Code)
	var broken error = endpointUnhashable{"cookies"}
	w.login.Store(&broken)
	body := signInPage(t, w.authorize("zhang-san", signInQuery().Encode()), http.StatusServiceUnavailable)
	require.NotContains(t, body, "cookies")
	require.Contains(t, w.logged(), "full of cookies")
	require.Empty(t, w.signIns())
}

// What is wrong before it is known where to return to is told to people alone; the rest to the app, with iss and state.
func TestAuthorizeMalformed(t *testing.T) {
	w := newEndpointWorld(t)
	valid := signInQuery().Encode()
	for name, query := range map[string]string{
		"nothing":                   "",
		"no client":                 signInQuery("client_id", "-").Encode(),
		"an unknown client":         signInQuery("client_id", "nobody").Encode(),
		"an app's name":             signInQuery("client_id", "PROBE").Encode(),
		"a client twice":            valid + "&client_id=other",
		"an address twice":          valid + "&redirect_uri=https%3A%2F%2Fevil.example",
		"a state twice":             valid + "&state=x",
		"an unknown one twice":      valid + "&x=1&x=2",
		"no address":                signInQuery("redirect_uri", "-").Encode(),
		"a client without one":      signInQuery("client_id", "rs").Encode(),
		"malformed encoding":        valid + "&x=%zz",
		"not UTF-8":                 valid + "&x=%ff",
		"a NUL":                     valid + "&x=%00",
		"a semicolon":               valid + ";x=1",
		"too long":                  valid + "&x=" + strings.Repeat("a", 8<<10),
		"too many":                  valid + manyParameters(),
		"a foreign address":         signInQuery("redirect_uri", "https://evil.example/cb").Encode(),
		"another app's":             signInQuery("redirect_uri", "https://other.example/cb").Encode(),
		"a longer path":             signInQuery("redirect_uri", signInRedirect+"/x").Encode(),
		"a shorter path":            signInQuery("redirect_uri", "https://probe.example/").Encode(),
		"a slash more":              signInQuery("redirect_uri", signInRedirect+"/").Encode(),
		"dots":                      signInQuery("redirect_uri", "https://probe.example/x/../cb").Encode(),
		"another case":              signInQuery("redirect_uri", "https://PROBE.example/cb").Encode(),
		"another scheme":            signInQuery("redirect_uri", "http://probe.example/cb").Encode(),
		"a script":                  signInQuery("redirect_uri", "javascript:alert(1)").Encode(),
		"a port":                    signInQuery("redirect_uri", "https://probe.example:443/cb").Encode(),
		"a user":                    signInQuery("redirect_uri", "https://probe.example@evil.example/cb").Encode(),
		"a suffix":                  signInQuery("redirect_uri", "https://evil.probe.example/cb").Encode(),
		"a query more":              signInQuery("redirect_uri", signInRedirect+"?x=1").Encode(),
		"a fragment":                signInQuery("redirect_uri", signInRedirect+"#x").Encode(),
		"a line break":              signInQuery("redirect_uri", signInRedirect+"\r\nSet-Cookie: a=b").Encode(),
		"a space":                   signInQuery("redirect_uri", " "+signInRedirect).Encode(),
		"loopback by name":          signInQuery("redirect_uri", "http://localhost:7000/cb").Encode(),
		"loopback, another address": signInQuery("redirect_uri", "http://127.0.0.2:7000/cb").Encode(),
		"loopback, another path":    signInQuery("redirect_uri", "http://127.0.0.1:7000/cb2").Encode(),
		"loopback, a port and more": signInQuery("redirect_uri", "http://127.0.0.1:7000@evil.example/cb").Encode(),
		"loopback, no port":         signInQuery("redirect_uri", "http://127.0.0.1:/cb").Encode(),
		"loopback, a long port":     signInQuery("redirect_uri", "http://127.0.0.1:123456/cb").Encode(),
		"loopback, https":           signInQuery("redirect_uri", "https://127.0.0.1:7000/cb").Encode(),
		"loopback, a fixed port":    signInQuery("redirect_uri", "http://127.0.0.1:7001/fixed").Encode(),
		"a foreign one, and errors": signInQuery("redirect_uri", "https://evil.example/cb", "response_type", "token").Encode(),
	} {
		t.Run(name, func(t *testing.T) {
			for _, account := range []string{"", "zhang-san"} {
				body := signInPage(t, w.authorize(account, query), http.StatusBadRequest)
				require.NotContains(t, body, "evil")
				require.NotContains(t, body, "<form")
				signInPage(t, w.answer(account, query, url.Values{"answer": {"yes"}}), http.StatusBadRequest)
			}
		})
	}
	for _, row := range []struct{ name, parameter, value, code string }{
		{"no response type", "response_type", "-", "invalid_request"},
		{"an empty one", "response_type", "", "invalid_request"},
		{"implicit", "response_type", "token", "unsupported_response_type"},
		{"hybrid", "response_type", "code token", "unsupported_response_type"},
		{"an ID token", "response_type", "id_token", "unsupported_response_type"},
		{"another case", "response_type", "Code", "unsupported_response_type"},
		{"a fragment", "response_mode", "fragment", "invalid_request"},
		{"a form", "response_mode", "form_post", "invalid_request"},
		{"no challenge", "code_challenge", "-", "invalid_request"},
		{"an empty challenge", "code_challenge", "", "invalid_request"},
		{"a short challenge", "code_challenge", signInChallenge[1:], "invalid_request"},
		{"a long challenge", "code_challenge", signInChallenge + "A", "invalid_request"},
		{"padding", "code_challenge", signInChallenge + "=", "invalid_request"},
		{"another alphabet", "code_challenge", strings.Repeat("+", 43), "invalid_request"},
		{"trailing bits", "code_challenge", signInChallenge[:42] + "B", "invalid_request"},
		{"a line break in it", "code_challenge", signInChallenge[:42] + "\n" + signInChallenge[42:], "invalid_request"},
		{"no method, which is plain", "code_challenge_method", "-", "invalid_request"},
		{"plain", "code_challenge_method", "plain", "invalid_request"},
		{"a method in another case", "code_challenge_method", "s256", "invalid_request"},
		{"an unknown method", "code_challenge_method", "S512", "invalid_request"},
		{"an action", "scope", "group:42/message.write", "invalid_scope"},
		{"an action without a domain", "scope", "message.write", "invalid_scope"},
		{"OpenID Connect", "scope", "openid", "invalid_scope"},
		{"profile and more", "scope", "profile email", "invalid_scope"},
		{"profile in another case", "scope", "Profile", "invalid_scope"},
		{"a tab", "scope", "profile\tprofile", "invalid_scope"},
		{"another API", "resource", "https://elsewhere.example", "invalid_target"},
		{"a part of the API", "resource", endpointIssuer + "/api", "invalid_target"},
		{"no URL", "resource", "social", "invalid_target"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, redirect := range []string{signInRedirect, "https://probe.example/cb?a=1&b=%20x"} {
				query := signInQuery(row.parameter, row.value, "redirect_uri", redirect).Encode()
				for _, rec := range []*httptest.ResponseRecorder{w.authorize("zhang-san", query), w.authorize("", query), w.answer("zhang-san", query, url.Values{"answer": {"yes"}})} {
					to := signInReturn(t, rec, redirect)
					require.Equal(t, row.code, to.Get("error"))
					require.NotEmpty(t, to.Get("error_description"))
					require.Equal(t, "s t&=ä", to.Get("state"))
					require.False(t, to.Has("code"))
				}
			}
			require.False(t, signInReturn(t, w.authorize("zhang-san", signInQuery(row.parameter, row.value, "state", "-").Encode()), signInRedirect).Has("state"))
		})
	}
	require.Empty(t, w.signIns())
	require.Empty(t, w.logged())
}

func manyParameters() string {
	var b strings.Builder
	for i := range 100 {
		b.WriteString("&x" + strings.Repeat("y", i) + "=1")
	}
	return b.String()
}

func TestAuthorizeTaken(t *testing.T) {
	w := newEndpointWorld(t)
	for _, change := range [][]string{
		nil,
		{"state", "-"},
		{"state", strings.Repeat("s", 2000) + "&code=x#\"<>\r\n日本"},
		{"scope", ""},
		{"scope", "profile"},
		{"scope", "profile profile"},
		{"response_mode", "query"},
		{"resource", endpointIssuer},
		{"resource", endpointIssuer + "/"},
		{"nonce", "n", "request_uri", "x", "prompt", "login"},
		{"redirect_uri", "https://probe.example/cb?a=1&b=%20x"},
		{"redirect_uri", "http://127.0.0.1/cb"},
		{"redirect_uri", "http://127.0.0.1:1/cb"},
		{"redirect_uri", "http://127.0.0.1:65535/cb"},
		{"redirect_uri", "http://[::1]:8080/cb?x=1"},
		{"redirect_uri", "http://127.0.0.1:7000/fixed"},
		{"redirect_uri", "http://localhost/cb"},
	} {
		code := w.consent("zhang-san", change...)
		rec := w.exchange(code, "redirect_uri", signInQuery(change...).Get("redirect_uri"))
		require.Equal(t, http.StatusOK, rec.Code, rec.Body)
	}
	require.Empty(t, w.logged())
}

// Only the page's own form makes a code: for its account, its request, for an hour, and sent from this site.
func TestAuthorizeForm(t *testing.T) {
	w := newEndpointWorld(t)
	query := signInQuery().Encode()
	token := w.formToken("zhang-san", query)
	yes := func(token string) url.Values { return url.Values{"token": {token}, "answer": {"yes"}} }
	for name, rec := range map[string]*httptest.ResponseRecorder{
		"no token":           w.answer("zhang-san", query, url.Values{"answer": {"yes"}}),
		"another account":    w.answer("li-si", query, yes(token)),
		"another state":      w.answer("zhang-san", signInQuery("state", "x").Encode(), yes(token)),
		"another address":    w.answer("zhang-san", signInQuery("redirect_uri", "http://127.0.0.1/cb").Encode(), yes(token)),
		"another app":        w.answer("zhang-san", signInQuery("client_id", "other", "redirect_uri", "https://other.example/cb").Encode(), yes(token)),
		"another challenge":  w.answer("zhang-san", signInQuery("code_challenge", strings.Repeat("A", 43)).Encode(), yes(token)),
		"more scope":         w.answer("zhang-san", signInQuery("scope", "profile").Encode(), yes(token)),
		"a shortened token":  w.answer("zhang-san", query, yes(token[:len(token)-1])),
		"a token's head":     w.answer("zhang-san", query, yes(token[:11])),
		"a longer token":     w.answer("zhang-san", query, yes(token+"AAAA")),
		"a line break":       w.answer("zhang-san", query, yes(token[:8]+"\n"+token[8:])),
		"another site":       w.answer("zhang-san", query, yes(token), "Sec-Fetch-Site", "cross-site"),
		"a sister site":      w.answer("zhang-san", query, yes(token), "Sec-Fetch-Site", "same-site"),
		"typed in":           w.answer("zhang-san", query, yes(token), "Sec-Fetch-Site", "none"),
		"another origin":     w.answer("zhang-san", query, yes(token), "Origin", "https://evil.example"),
		"an origin's suffix": w.answer("zhang-san", query, yes(token), "Origin", endpointIssuer+".evil.example"),
		"no, by another":     w.answer("li-si", query, url.Values{"token": {token}, "answer": {"no"}}),
	} {
		t.Run(name, func(t *testing.T) { signInPage(t, rec, http.StatusForbidden) })
	}
	for name, rec := range map[string]*httptest.ResponseRecorder{
		"no answer":    w.answer("zhang-san", query, url.Values{"token": {token}}),
		"twice":        w.answer("zhang-san", query, url.Values{"token": {token}, "answer": {"yes", "no"}}),
		"not a form":   w.answer("zhang-san", query, yes(token), "Content-Type", "text/plain"),
		"in the query": w.answer("zhang-san", query+"&"+yes(token).Encode(), url.Values{}),
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, []int{http.StatusBadRequest, http.StatusForbidden}, rec.Code)
			signInPage(t, rec, rec.Code)
		})
	}
	require.Empty(t, w.signIns())

	to := signInReturn(t, w.answer("zhang-san", query, url.Values{"token": {token}, "answer": {"no"}}), signInRedirect)
	require.Equal(t, "access_denied", to.Get("error"))
	require.Equal(t, "s t&=ä", to.Get("state"))
	require.Empty(t, w.signIns())
	w.advance(time.Hour - time.Second)
	for _, origin := range []string{"", "null", endpointIssuer} { // as browsers say, old ones too
		header := []string{}
		if origin != "" {
			header = []string{"Origin", origin}
		}
		require.NotEmpty(t, signInReturn(t, w.answer("zhang-san", query, yes(token), header...), signInRedirect).Get("code"))
	}
	require.Len(t, w.signIns(), 3)
	w.advance(time.Second)
	signInPage(t, w.answer("zhang-san", query, yes(token)), http.StatusForbidden)
	require.Empty(t, w.logged())
}

func TestAuthorizeStoreFails(t *testing.T) {
	w := newEndpointWorld(t)
	query := signInQuery().Encode()
	token := w.formToken("zhang-san", query)
	for _, p := range []func(*error){func(e *error) { w.store.failGet.Store(e) }, func(e *error) { w.store.failApply.Store(e) }} {
		var broken error = endpointUnhashable{"sectors"}
		p(&broken)
		to := signInReturn(t, w.answer("zhang-san", query, url.Values{"token": {token}, "answer": {"yes"}}), signInRedirect)
		require.Equal(t, "temporarily_unavailable", to.Get("error"))
		require.NotContains(t, to.Encode(), "sectors")
		require.Equal(t, "s t&=ä", to.Get("state"))
		p(nil)
	}
	require.Contains(t, w.logged(), "full of sectors")
	require.Empty(t, w.signIns())
}

// Config.Account is what makes the endpoint.
func TestAuthorizeIsOptional(t *testing.T) {
	serve := func(c authz.Config) *http.ServeMux {
		az, err := authz.New(c)
		require.NoError(t, err)
		mux := http.NewServeMux()
		az.Routes(mux.Handle)
		return mux
	}
	c := configured()
	mux := serve(c)
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequest("GET", "/oauth2/authorize", nil))
	require.Equal(t, http.StatusNotFound, rec.Code)
	for _, grantType := range []string{"authorization_code", "refresh_token"} {
		rec = httptest.NewRecorder()
		mux.ServeHTTP(rec, endpointRequest("POST", "/oauth2/token", "grant_type="+grantType+"&code=x&redirect_uri=x&code_verifier=x&refresh_token=x", "Authorization", endpointBasic("bookbot", "long enough")))
		endpointRefused(t, rec, 400, "unsupported_grant_type")
	}

	c.Account, c.LoginURL, c.Issuer, c.Prefix = func(*http.Request) (string, error) { return "", errors.New("no") }, "/login", "https://social.example/a", "/o"
	mux = serve(c)
	rec = httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequest("GET", "/a/o/authorize", nil))
	signInPage(t, rec, http.StatusBadRequest)
	rec = httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequest("GET", "/.well-known/oauth-authorization-server/a", nil))
	body := endpointJSON(t, rec)
	require.Equal(t, "https://social.example/a/o/authorize", body["authorization_endpoint"])
	require.Equal(t, []any{"code"}, body["response_types_supported"])
	require.Equal(t, []any{"query"}, body["response_modes_supported"])
	require.Equal(t, []any{"S256"}, body["code_challenge_methods_supported"])
	require.Equal(t, true, body["authorization_response_iss_parameter_supported"])
	require.Equal(t, []any{authz.GrantTypeOperation, "urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials", "authorization_code", "refresh_token"}, body["grant_types_supported"])
	require.Equal(t, []any{"profile"}, body["scopes_supported"])
	for _, name := range []string{"token", "revocation"} {
		require.Contains(t, body[name+"_endpoint_auth_methods_supported"], "none", "public clients")
	}
	require.NotContains(t, body["introspection_endpoint_auth_methods_supported"], "none")
}

func FuzzAuthorize(f *testing.F) {
	w := newEndpointWorld(f)
	for _, seed := range []string{"", signInQuery().Encode(), signInQuery("redirect_uri", "http://127.0.0.1:99999/cb").Encode(), signInQuery("scope", "x").Encode(), "client_id=probe&redirect_uri=%zz", "a;b&c=%00"} {
		f.Add(seed)
	}
	registered := map[string]bool{}
	for _, u := range endpointApps()[0].RedirectURIs {
		registered[u] = true
	}
	loopback := regexp.MustCompile(`^http://(127\.0\.0\.1:\d{1,5}/cb|\[::1\]:\d{1,5}/cb\?x=1)$`)
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/oauth2/authorize", nil)
		r.URL.RawQuery = query
		r.AddCookie(&http.Cookie{Name: "account", Value: "zhang-san"})
		rec := w.do(r)
		switch rec.Code {
		case http.StatusBadRequest:
			signInPage(t, rec, http.StatusBadRequest)
		case http.StatusOK:
			signInPage(t, rec, http.StatusOK)
		case http.StatusSeeOther:
			q, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			uri := q.Get("redirect_uri")
			if !registered[uri] && !loopback.MatchString(uri) && q.Get("client_id") != "other" {
				t.Fatalf("%q leads to %q", query, uri)
			}
			signInReturn(t, rec, uri)
		default:
			t.Fatal(rec.Code)
		}
	})
}
