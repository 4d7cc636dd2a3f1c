package app_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/scope"
)

// transport answers without a network.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, contentType, body string, header ...string) *http.Response {
	h := http.Header{}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ProtoMajor: 1, ProtoMinor: 1}
}

func says(status int, body string) transport {
	return func(*http.Request) (*http.Response, error) { return answer(status, "application/json", body), nil }
}

const (
	hardID     = "prøbe: +%&-"
	hardSecret = "s3cr:t +%&-é"
	tokenJSON  = `{"access_token":"bhst_topsecret","token_type":"Bearer","expires_in":600,"scope":"group:42/message.write","grant_id":"g1","uses":3,"domain":"group:42","sub":"pw-zhang"}`
)

func client(rt http.RoundTripper) *app.Client {
	return &app.Client{Issuer: "https://social.example", ID: hardID, Secret: app.NewSecret(hardSecret), Transport: rt,
		Now: func() time.Time { return epoch }}
}

// RFC 6749 §2.3.1: id and secret are form-encoded before they are joined by ":".
func credentials(t *testing.T, r *http.Request) (id, secret string) {
	encoded, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Basic ")
	require.True(t, ok)
	raw, err := base64.StdEncoding.DecodeString(encoded)
	require.NoError(t, err)
	a, b, ok := strings.Cut(string(raw), ":")
	require.True(t, ok)
	id, err = url.QueryUnescape(a)
	require.NoError(t, err)
	secret, err = url.QueryUnescape(b)
	require.NoError(t, err)
	return id, secret
}

func TestRedeem(t *testing.T) {
	var seen *http.Request
	c := client(transport(func(r *http.Request) (*http.Response, error) {
		seen = r
		require.NoError(t, r.ParseForm())
		return answer(200, "application/json;charset=UTF-8", tokenJSON), nil
	}))
	token, err := c.Redeem(t.Context(), app.NewSecret("bhsc_a+b c&d"))
	require.NoError(t, err)
	id, secret := credentials(t, seen)
	require.Equal(t, []string{hardID, hardSecret}, []string{id, secret})
	require.Equal(t, "POST https://social.example/oauth2/token", seen.Method+" "+seen.URL.String())
	require.Equal(t, url.Values{"grant_type": {"urn:behest:grant-type:operation"}, "code": {"bhsc_a+b c&d"}}, seen.PostForm)
	require.Equal(t, "application/x-www-form-urlencoded", seen.Header.Get("Content-Type"))
	require.Equal(t, "bhst_topsecret", token.AccessToken.Reveal())
	require.Equal(t, epoch.Add(10*time.Minute), token.Expiry)
	require.Equal(t, []any{"g1", int64(3), scope.MustDomain("group:42"), "pw-zhang", "group:42/message.write"},
		[]any{token.GrantID, token.Uses, token.Domain, token.Account, token.Scope.String()})
}

func TestEndpoints(t *testing.T) {
	var urls []string
	rt := transport(func(r *http.Request) (*http.Response, error) {
		urls = append(urls, r.Method+" "+r.URL.String())
		if strings.Contains(r.URL.Path, "grants") {
			return answer(200, "application/json", `{"grants":[]}`), nil
		}
		return answer(200, "application/json", tokenJSON), nil
	})
	all := func(c *app.Client) {
		urls = nil
		token, err := c.Redeem(t.Context(), app.NewSecret("c"))
		require.NoError(t, err)
		require.NoError(t, c.Revoke(t.Context(), token))
		for _, wait := range []time.Duration{0, 5 * time.Second} {
			grants, err := c.Grants(t.Context(), wait)
			require.NoError(t, err)
			require.Empty(t, grants)
		}
	}
	c := client(rt)
	c.Issuer = "https://social.example/tenant/"
	all(c)
	require.Equal(t, []string{"POST https://social.example/tenant/oauth2/token", "POST https://social.example/tenant/oauth2/revoke",
		"GET https://social.example/tenant/oauth2/grants", "GET https://social.example/tenant/oauth2/grants?wait=5s"}, urls)
	c = client(rt)
	c.TokenURL, c.RevokeURL, c.GrantsURL = "https://a.example/t?x=1", "https://a.example/r", "https://a.example/grants?x=1"
	all(c)
	require.Equal(t, []string{"POST https://a.example/t?x=1", "POST https://a.example/r",
		"GET https://a.example/grants?x=1", "GET https://a.example/grants?wait=5s&x=1"}, urls)
}

func TestAnswersThatAreNotTheProtocol(t *testing.T) {
	big := `{"access_token":"` + strings.Repeat("x", 1<<20) + `"}`
	with := func(from, to string) string { return strings.Replace(tokenJSON, from, to, 1) }
	for name, resp := range map[string]*http.Response{
		"HTML":                   answer(200, "text/html", tokenJSON),
		"no content type":        answer(200, "", tokenJSON),
		"empty":                  answer(200, "application/json", ""),
		"not JSON":               answer(200, "application/json", "<html>"),
		"too large":              answer(200, "application/json", big),
		"no token":               answer(200, "application/json", "{}"),
		"null":                   answer(200, "application/json", "null"),
		"token of another kind":  answer(200, "application/json", with(`"bhst_topsecret"`, "17")),
		"token with a line end":  answer(200, "application/json", with(`bhst_topsecret`, `bhst_topsecret\r\nX: y`)),
		"another token type":     answer(200, "application/json", with("Bearer", "DPoP")),
		"no expires_in":          answer(200, "application/json", with(`"expires_in":600,`, "")),
		"expired":                answer(200, "application/json", with("600", "0")),
		"expires_in too large":   answer(200, "application/json", with("600", "9223372036854775807")),
		"expires_in as a string": answer(200, "application/json", with("600", `"600"`)),
		"negative uses":          answer(200, "application/json", with(`"uses":3`, `"uses":-3`)),
		"bad scope":              answer(200, "application/json", with("group:42/message.write", "??")),
		"bad domain":             answer(200, "application/json", with(`"group:42"`, `"??"`)),
	} {
		_, err := client(transport(func(*http.Request) (*http.Response, error) { return resp, nil })).Redeem(t.Context(), app.NewSecret("c"))
		require.ErrorIs(t, err, app.ErrProtocol, name)
		require.NotContains(t, err.Error(), "topsecret", name)
	}
	token, err := client(says(200, with(`"uses":3,`, ""))).Redeem(t.Context(), app.NewSecret("c"))
	require.NoError(t, err)
	require.Zero(t, token.Uses, "not counted")
}

func TestErrors(t *testing.T) {
	all := []error{app.ErrExpired, app.ErrUsedUp, app.ErrRevoked, app.ErrWrongDomain, app.ErrWrongAction, app.ErrRightsChanged, app.ErrInvalidGrant}
	for _, c := range []struct {
		resp *http.Response
		want app.Error
		is   []error
		text string
	}{
		{answer(400, "application/json", `{"error":"invalid_grant","error_description":"no such code"}`),
			app.Error{Status: 400, Code: "invalid_grant", Description: "no such code"}, []error{app.ErrInvalidGrant}, "app: the server refused: 400 invalid_grant: no such code"},
		{answer(401, "application/json", `{"error":"invalid_token","error_reason":"expired"}`),
			app.Error{Status: 401, Code: "invalid_token", Reason: "expired"}, []error{app.ErrExpired}, "app: the server refused: 401 invalid_token (expired)"},
		{answer(401, "application/json", `{"error":"invalid_token","error_reason":"used_up"}`),
			app.Error{Status: 401, Code: "invalid_token", Reason: "used_up"}, []error{app.ErrUsedUp}, ""},
		{answer(401, "application/json", `{"error":"invalid_token","error_reason":"revoked"}`),
			app.Error{Status: 401, Code: "invalid_token", Reason: "revoked"}, []error{app.ErrRevoked}, ""},
		{answer(403, "application/json", `{"error":"insufficient_scope","error_reason":"wrong_domain"}`),
			app.Error{Status: 403, Code: "insufficient_scope", Reason: "wrong_domain"}, []error{app.ErrWrongDomain}, ""},
		{answer(403, "application/json", `{"error":"insufficient_scope","error_reason":"wrong_action"}`),
			app.Error{Status: 403, Code: "insufficient_scope", Reason: "wrong_action"}, []error{app.ErrWrongAction}, ""},
		{answer(403, "application/json", `{"error":"access_denied","error_reason":"rights_changed"}`),
			app.Error{Status: 403, Code: "access_denied", Reason: "rights_changed"}, []error{app.ErrRightsChanged}, ""},
		{answer(400, "application/json", `{"error":"invalid_grant","error_reason":"expired"}`),
			app.Error{Status: 400, Code: "invalid_grant", Reason: "expired"}, []error{app.ErrInvalidGrant, app.ErrExpired}, ""},
		{answer(429, "application/json", `{"error":"slow_down"}`, "Retry-After", "7"),
			app.Error{Status: 429, Code: "slow_down", RetryAfter: 7 * time.Second}, nil, ""},
		{answer(503, "text/plain", `{"error":"invalid_grant"}`, "Retry-After", "Mon, 01 Jun 2026 12:01:00 GMT", "Date", "Mon, 01 Jun 2026 12:00:00 GMT"),
			app.Error{Status: 503, RetryAfter: time.Minute}, nil, "app: the server refused: 503"},
		{answer(503, "application/json", `{"error":`, "Retry-After", "Mon, 01 Jun 2026 12:01:00 GMT"), app.Error{Status: 503}, nil, ""},
		{answer(302, "", "", "Location", "https://evil.example/"), app.Error{Status: 302}, nil, ""},
		{answer(307, "", "", "Location", "https://evil.example/"), app.Error{Status: 307}, nil, ""},
		{answer(101, "", ""), app.Error{Status: 101}, nil, ""},
		{answer(204, "", ""), app.Error{Status: 204}, nil, ""},
		{answer(400, "application/json", `{"error":"a\nlevel=ERROR \"b\"","error_description":"`+strings.Repeat("é", 1000)+`","error_reason":"new"}`),
			app.Error{Status: 400, Code: "a?level=ERROR ?b?", Description: strings.Repeat("?", 256), Reason: "new"}, nil, ""},
		{answer(400, "application/json", strings.Repeat(" ", 2<<20)+`{"error":"late"}`), app.Error{Status: 400}, nil, ""},
	} {
		calls := 0
		_, err := client(transport(func(*http.Request) (*http.Response, error) { calls++; return c.resp, nil })).Redeem(t.Context(), app.NewSecret("c"))
		require.Equal(t, 1, calls)
		var got *app.Error
		require.ErrorAs(t, err, &got)
		require.Equal(t, c.want, *got)
		for _, sentinel := range all {
			wanted := false
			for _, s := range c.is {
				wanted = wanted || s == sentinel
			}
			require.Equal(t, wanted, errors.Is(err, sentinel), "%v is %v", err, sentinel)
		}
		if c.text != "" {
			require.EqualError(t, err, c.text)
		}
	}
}

func TestClientConfiguration(t *testing.T) {
	for name, change := range map[string]func(*app.Client){
		"no id":                func(c *app.Client) { c.ID = "" },
		"no secret":            func(c *app.Client) { c.Secret = app.Secret{} },
		"no issuer":            func(c *app.Client) { c.Issuer = "" },
		"issuer without host":  func(c *app.Client) { c.Issuer = "https://" },
		"relative issuer":      func(c *app.Client) { c.Issuer = "social.example" },
		"issuer with userinfo": func(c *app.Client) { c.Issuer = "https://u:topsecret@social.example" },
		"plain http":           func(c *app.Client) { c.Issuer = "http://social.example" },
		"plain http endpoint":  func(c *app.Client) { c.TokenURL = "http://social.example/t" },
		"plain http lookalike": func(c *app.Client) { c.Issuer = "http://127.0.0.1.evil.example" },
		"another scheme":       func(c *app.Client) { c.API = "ftp://social.example" },
		"malformed":            func(c *app.Client) { c.RevokeURL = "https://%zz/topsecret" },
	} {
		c := client(transport(func(*http.Request) (*http.Response, error) {
			t.Error("sent: " + name)
			return nil, io.EOF
		}))
		change(c)
		_, err := c.Redeem(t.Context(), app.NewSecret("c"))
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "topsecret", name)
		_, err = c.Grants(t.Context(), 0)
		require.Error(t, err, name)
		require.Error(t, (&app.Poller{Client: c, Handle: func(context.Context, app.Grant) error { return nil }}).Run(t.Context()), name)
	}
	for _, issuer := range []string{"http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080", "http://social.localhost"} {
		c := client(says(200, tokenJSON))
		c.Issuer = issuer
		_, err := c.Redeem(t.Context(), app.NewSecret("c"))
		require.NoError(t, err, issuer)
	}
	c := client(says(200, tokenJSON))
	c.Issuer, c.InsecureHTTP = "http://social:8080", true
	_, err := c.Redeem(t.Context(), app.NewSecret("c"))
	require.NoError(t, err)
	_, err = c.Redeem(t.Context(), app.Secret{})
	require.Error(t, err)
	require.Error(t, c.Revoke(t.Context(), nil))
	require.Error(t, c.Revoke(t.Context(), &app.Token{}))
	_, err = c.Grants(t.Context(), -1)
	require.Error(t, err)
	_, err = c.Grants(t.Context(), 31*time.Second)
	require.Error(t, err)
}

func TestGrantsLeavesOutWhatIsMalformed(t *testing.T) {
	c := client(says(200, `{"grants":[`+grantJSON+`,{"id":"g2"},7,{"id":"g3","code":"c3"}]}`))
	grants, err := c.Grants(t.Context(), 0)
	require.ErrorIs(t, err, app.ErrProtocol)
	require.Len(t, grants, 2)
	require.Equal(t, "g3", grants[1].ID)
}

// P6: neither the query nor the userinfo of a URL is in an error, whatever the transport says.
func TestP6ErrorsHoldNoQuery(t *testing.T) {
	c := client(transport(func(r *http.Request) (*http.Response, error) {
		return nil, &url.Error{Op: "Get", URL: r.URL.String() + "?topsecret", Err: io.ErrUnexpectedEOF}
	}))
	c.GrantsURL = "https://social.example/grants?key=topsecret"
	_, err := c.Grants(t.Context(), 0)
	require.EqualError(t, err, "app: GET https://social.example/grants: unexpected EOF")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	req, err := http.NewRequest(http.MethodGet, "https://social.example/api?key=topsecret", nil)
	require.NoError(t, err)
	_, err = c.Do(req, &app.Token{AccessToken: app.NewSecret("t")})
	require.EqualError(t, err, "app: GET https://social.example/api: unexpected EOF")
}

type closing struct {
	io.Reader
	closed *bool
}

func (c closing) Close() error { *c.closed = true; return nil }

func TestDo(t *testing.T) {
	var seen *http.Request
	c := client(transport(func(r *http.Request) (*http.Response, error) {
		seen = r
		return answer(201, "text/plain", "made"), nil
	}))
	c.API = "https://api.social.example:443/v1"
	token := &app.Token{AccessToken: app.NewSecret("bhst_x")}
	req, err := http.NewRequest(http.MethodPost, "https://API.social.example/v2/messages?a=b", strings.NewReader("hi"))
	require.NoError(t, err)
	req.Header.Set("Idempotency-Key", "k")
	resp, err := c.Do(req, token)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "made", string(body))
	require.Equal(t, "Bearer bhst_x", seen.Header.Get("Authorization"))
	require.Equal(t, "k", seen.Header.Get("Idempotency-Key"))
	require.Empty(t, req.Header.Get("Authorization"), "the caller's request is left alone")

	for _, elsewhere := range []string{"https://evil.example/", "http://api.social.example/", "https://api.social.example:8443/",
		"https://social.example/", "https://api.social.example.evil.example/", "https://u@api.social.example/"} {
		seen = nil
		closed := false
		req, err := http.NewRequest(http.MethodPost, elsewhere, closing{strings.NewReader("x"), &closed})
		require.NoError(t, err)
		_, err = c.Do(req, token)
		require.Error(t, err, elsewhere)
		require.Nil(t, seen, elsewhere)
		require.True(t, closed, elsewhere)
	}
	for _, none := range []*app.Token{nil, {}} {
		_, err = c.Do(req, none)
		require.Error(t, err)
	}
}

// Neither credentials nor tokens follow a redirect, whoever asks for it.
func TestNoRedirectIsFollowed(t *testing.T) {
	evil := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Error("came to " + r.URL.Path) }))
	defer evil.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
			http.Redirect(w, r, evil.URL, status)
		}))
		c := &app.Client{Issuer: srv.URL, ID: "a", Secret: app.NewSecret("s")}
		var refused *app.Error
		_, err := c.Redeem(t.Context(), app.NewSecret("c"))
		require.ErrorAs(t, err, &refused)
		require.Equal(t, status, refused.Status)
		_, err = c.Grants(t.Context(), 0)
		require.ErrorAs(t, err, &refused)
		req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
		require.NoError(t, err)
		_, err = c.Do(req, &app.Token{AccessToken: app.NewSecret("t")})
		require.ErrorAs(t, err, &refused)
		require.Equal(t, status, refused.Status)
		srv.Close()
	}
}

func TestCallback(t *testing.T) {
	c := client(nil)
	iss := url.QueryEscape(c.Issuer)
	for query, want := range map[string]string{
		"code=bhsc_1&iss=" + iss:                            "bhsc_1",
		"a=1&a=2&code=bhsc_1&b=&iss=" + iss:                 "bhsc_1",
		"code=%2B%20&iss=" + iss:                            "",
		"":                                                  "",
		"code=bhsc_1":                                       "",
		"code=bhsc_1&iss=":                                  "",
		"code=bhsc_1&iss=" + iss + "%2F":                    "",
		"code=bhsc_1&iss=https://EVIL":                      "",
		"code=bhsc_1&iss=HTTPS://social.example":            "",
		"iss=" + iss:                                        "",
		"code=&iss=" + iss:                                  "",
		"code=1&code=2&iss=" + iss:                          "",
		"code=1&code=1&iss=" + iss:                          "",
		"code=1&iss=" + iss + "&iss=" + iss:                 "",
		"code=1&iss=" + iss + "&error=a&error=b":            "",
		"code=1;iss=" + iss:                                 "",
		"code=%zz&iss=" + iss:                               "",
		"code=a%00b&iss=" + iss:                             "",
		"code=a%0Ab&iss=" + iss:                             "",
		"code=" + strings.Repeat("a", 5000) + "&iss=" + iss: "",
		"x=" + strings.Repeat("a", 10000) + "&code=1&iss=" + iss: "",
	} {
		code, err := c.Callback(httptest.NewRequest(http.MethodGet, "/cb?"+query, nil))
		require.Equal(t, want, code.Reveal(), query)
		if want == "" {
			require.ErrorIs(t, err, app.ErrCallback, query)
			require.NotContains(t, err.Error(), "bhsc")
			continue
		}
		require.NoError(t, err, query)
	}
	for _, method := range []string{"HEAD", "POST", "OPTIONS"} {
		_, err := c.Callback(httptest.NewRequest(method, "/cb?code=1&iss="+iss, nil))
		require.ErrorIs(t, err, app.ErrCallback)
	}
	_, err := c.Callback(httptest.NewRequest(http.MethodGet, "/cb?error=access_denied&error_description=no&iss="+iss, nil))
	var refused *app.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, app.Error{Code: "access_denied", Description: "no"}, *refused)
	require.EqualError(t, err, "app: the server refused: access_denied: no")
	_, err = c.Callback(httptest.NewRequest(http.MethodGet, "/cb?error=access_denied", nil))
	require.ErrorIs(t, err, app.ErrCallback, "an error of who knows whom")
	_, err = (&app.Client{}).Callback(httptest.NewRequest(http.MethodGet, "/cb?code=1&iss=", nil))
	require.ErrorIs(t, err, app.ErrCallback)
}

func FuzzCallback(f *testing.F) {
	c := client(nil)
	f.Add("code=a&iss=https://social.example")
	f.Add("code=a&code=b&iss=https%3A%2F%2Fsocial.example&error=x")
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, "/cb", nil)
		r.URL.RawQuery = query
		code, err := c.Callback(r)
		require.NotEqual(t, err == nil, code.IsZero())
		if err == nil {
			q, err := url.ParseQuery(query)
			require.NoError(t, err)
			require.Equal(t, []string{code.Reveal()}, q["code"])
			require.Equal(t, []string{c.Issuer}, q["iss"])
		}
	})
}

// golang.org/x/oauth2 takes the token as it is, and its source says so when it is over.
func TestOAuth2(t *testing.T) {
	now := epoch
	c := client(says(200, tokenJSON))
	c.Now = func() time.Time { return now }
	token, err := c.Redeem(t.Context(), app.NewSecret("c"))
	require.NoError(t, err)
	std := token.OAuth2()
	require.Equal(t, "Bearer", std.Type())
	require.Equal(t, "bhst_topsecret", std.AccessToken)
	require.Empty(t, std.RefreshToken)
	require.Equal(t, "g1", std.Extra("grant_id"))
	require.Equal(t, "group:42", std.Extra("domain"))
	require.Equal(t, "pw-zhang", std.Extra("sub"))
	require.Equal(t, "group:42/message.write", std.Extra("scope"))

	src := token.TokenSource()
	now = epoch.Add(10*time.Minute - time.Nanosecond)
	_, err = src.Token()
	require.NoError(t, err)
	now = now.Add(time.Nanosecond)
	_, err = src.Token()
	require.ErrorIs(t, err, app.ErrExpired)

	fresh := &app.Token{AccessToken: app.NewSecret("bhst_fresh"), Expiry: time.Now().Add(time.Hour)}
	var auth string
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		auth = r.Header.Get("Authorization")
		return answer(200, "", ""), nil
	})})
	resp, err := oauth2.NewClient(ctx, fresh.TokenSource()).Get("https://social.example/api")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, "Bearer bhst_fresh", auth)
	over := &app.Token{AccessToken: app.NewSecret("bhst_over"), Expiry: time.Now().Add(-time.Hour)}
	_, err = oauth2.NewClient(ctx, over.TokenSource()).Get("https://social.example/api") //nolint:bodyclose // there is none
	require.ErrorIs(t, err, app.ErrExpired)
	forever := &app.Token{AccessToken: app.NewSecret("x")}
	_, err = forever.TokenSource().Token()
	require.NoError(t, err)
}

// P6: types that hold secrets redact themselves, wherever they lie.
func TestP6SecretsRedactThemselves(t *testing.T) {
	type closed struct {
		s app.Secret
		t *app.Token
		g app.Grant
		c *app.Client
	}
	var grant app.Grant
	require.NoError(t, json.Unmarshal([]byte(grantJSON), &grant))
	secret := app.NewSecret("topsecret")
	token := &app.Token{AccessToken: secret}
	cl := &app.Client{Secret: secret}
	values := []any{secret, &secret, []app.Secret{secret}, map[string]app.Secret{"a": secret}, grant, &grant, *token, token, *cl, cl,
		closed{secret, token, grant, cl}, &closed{secret, token, grant, cl}, []closed{{secret, token, grant, cl}}}
	var out []string
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%c", "%U", "%p", "% x", "%20s"} {
			out = append(out, fmt.Sprintf(verb, v))
		}
		var buf bytes.Buffer
		slog.New(slog.NewTextHandler(&buf, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&buf, nil)).Info("x", "v", v)
		out = append(out, buf.String())
	}
	for _, v := range values[:8] {
		j, err := json.Marshal(v)
		require.NoError(t, err)
		out = append(out, string(j))
	}
	for _, s := range out {
		for _, leak := range []string{"topsecret", "746f70736563726574", "746F70736563726574", "74 6f 70", "116 111 112"} {
			require.NotContains(t, s, leak)
		}
	}
	j, err := json.Marshal(grant)
	require.NoError(t, err)
	require.Contains(t, string(j), `"code":"[redacted]"`)
	require.Empty(t, fmt.Sprint(app.Secret{}))
	require.True(t, app.NewSecret("").IsZero())
	require.Equal(t, "topsecret", secret.Reveal())
}
