package main

import (
	"context"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

// Somebody who is not logged in here signs in to another site, whose side is golang.org/x/oauth2.
func TestSignInElsewhere(t *testing.T) { everyStore(t, testSignInElsewhere) }

func testSignInElsewhere(t *testing.T, o options) {
	o.apps = withTriggers(t)
	s := launch(t, o)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	p := &person{s, &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	open := func(resp *http.Response, err error) (status int, to, body string) {
		t.Helper()
		require.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		to = resp.Header.Get("Location")
		if strings.HasPrefix(to, "/") {
			to = s.base + to
		}
		return resp.StatusCode, to, string(text)
	}
	hidden := func(name, body string) string {
		t.Helper()
		found := regexp.MustCompile(`name="` + name + `" value="([^"]*)"`).FindStringSubmatch(body)
		require.Len(t, found, 2, body)
		return html.UnescapeString(found[1])
	}

	site := oauth2.Config{
		ClientID: "probe", ClientSecret: "s3cr:t +%&-", RedirectURL: "http://127.0.0.1:9/in", Scopes: []string{"profile"},
		Endpoint: oauth2.Endpoint{AuthURL: s.base + "/oauth2/authorize", TokenURL: s.base + "/oauth2/token"},
	}
	verifier := oauth2.GenerateVerifier()
	there := site.AuthCodeURL("a state", oauth2.S256ChallengeOption(verifier))
	status, to, _ := open(p.http.Get(there))
	require.Equal(t, http.StatusSeeOther, status)
	status, _, body := open(p.http.Get(to))
	require.Equal(t, http.StatusOK, status, "the page to log in")
	status, to, _ = open(p.http.PostForm(s.base+"/login", url.Values{"user": {"zhang-san"}, "return_to": {hidden("return_to", body)}}))
	require.Equal(t, http.StatusSeeOther, status)
	require.Equal(t, there, to, "and back")
	status, _, body = open(p.http.Get(to))
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "Probe")
	status, to, _ = open(p.http.PostForm(to, url.Values{"token": {hidden("token", body)}, "answer": {"yes"}}))
	require.Equal(t, http.StatusSeeOther, status)
	back, err := url.Parse(to)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:9", back.Host)
	require.Equal(t, "a state", back.Query().Get("state"))
	require.Equal(t, s.base, back.Query().Get("iss"))

	ctx := context.Background()
	token, err := site.Exchange(ctx, back.Query().Get("code"), oauth2.VerifierOption(verifier))
	require.NoError(t, err)
	require.Equal(t, "zhang-san", token.Extra("username"))
	require.NotEmpty(t, token.Extra("sub"))
	require.NotEqual(t, "zhang-san", token.Extra("sub"))
	require.Greater(t, time.Until(token.Expiry), 55*time.Minute)
	old := *token
	token.Expiry = time.Now().Add(-time.Second) // so that the client refreshes
	again, err := site.TokenSource(ctx, token).Token()
	require.NoError(t, err)
	require.NotEqual(t, old.AccessToken, again.AccessToken)
	require.NotEqual(t, old.RefreshToken, again.RefreshToken)
	require.Equal(t, old.Extra("sub"), again.Extra("sub"))

	// Who somebody is opens nothing.
	req := request(t, "GET", s.base+"/api/groups/42/messages", "", "")
	req.Header.Set("Authorization", "Bearer "+again.AccessToken)
	a := do(t, http.DefaultClient, req)
	require.Equal(t, http.StatusUnauthorized, a.status)
	require.Equal(t, "invalid_token", a.json(t)["error"])

	for _, elsewhere := range []string{"https://evil.example/", "//evil.example/oauth2/authorize?", "/groups/42", `/\evil.example`, "/oauth2/authorize?a=\x00"} {
		_, to, _ := open(p.http.PostForm(s.base+"/login", url.Values{"user": {"zhang-san"}, "return_to": {elsewhere}}))
		require.Equal(t, s.base+"/", to)
	}
}
