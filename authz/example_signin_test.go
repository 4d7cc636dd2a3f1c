package authz_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"

	"golang.org/x/oauth2"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
)

// People sign in to another site with their accounts here. The site's side is golang.org/x/oauth2, which has never heard
// of Behest.
func ExampleConfig_account() {
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	defer srv.Close()
	az, err := authz.New(authz.Config{
		Issuer: srv.URL,
		Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []authz.App{{ID: "bookshop", Name: "The Bookshop", Secret: grant.NewSecret("bookshop-secret"),
			RedirectURIs: []string{"https://bookshop.example/signed-in"}}},
		Account:  func(*http.Request) (string, error) { return "zhang-san", nil }, // by your session's cookie
		LoginURL: "/login",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	az.Routes(mux.Handle)

	// The site sends people here, with a state and a verifier that it keeps in their session.
	site := oauth2.Config{
		ClientID: "bookshop", ClientSecret: "bookshop-secret", RedirectURL: "https://bookshop.example/signed-in", Scopes: []string{"profile"},
		Endpoint: oauth2.Endpoint{AuthURL: srv.URL + "/oauth2/authorize", TokenURL: srv.URL + "/oauth2/token"},
	}
	verifier := oauth2.GenerateVerifier()
	there := site.AuthCodeURL("a-state", oauth2.S256ChallengeOption(verifier))

	// They are asked, say yes, and are back with a code.
	browser := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	page, err := get(browser, there)
	if err != nil {
		fmt.Println(err)
		return
	}
	token := regexp.MustCompile(`name="token" value="([^"]+)"`).FindStringSubmatch(page)[1]
	res, err := browser.PostForm(there, url.Values{"token": {token}, "answer": {"yes"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer res.Body.Close()
	back, err := res.Location()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(back.Host, back.Query().Get("state"), back.Query().Get("iss") == srv.URL)

	tokens, err := site.Exchange(context.Background(), back.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(tokens.Extra("username"), tokens.Extra("sub") == az.Engine().Name("bookshop", "zhang-san"), tokens.RefreshToken != "")
	// Output:
	// bookshop.example a-state true
	// zhang-san true true
}

func get(c *http.Client, url string) (string, error) {
	res, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return string(text), err
}
