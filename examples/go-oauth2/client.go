package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"golang.org/x/oauth2"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// A client plays those who come to the server.
type client struct {
	out    io.Writer
	server http.Handler
	failed error
}

// before are two of the holes of go-oauth2, and that it knows nothing of what a user just asked.
func (c *client) before() error {
	fmt.Fprintln(c.out, "Before:")
	own := c.signIn("")
	c.step("  A stranger refreshes his token", c.refresh("stranger", own), "done")
	c.step("  BookBot redeems a code for an operation", c.token(secret, "grant_type", authz.GrantTypeOperation, "code", "none"), "unsupported_grant_type")
	return c.failed
}

// after has them closed, and an app that acts as the user once, because he asked.
func (c *client) after(az *authz.Server) error {
	fmt.Fprintln(c.out, "After:")
	own := c.signIn("S256")
	c.step("  A stranger refreshes his token", c.refresh("stranger", own), "invalid_client")
	c.step("  BookBot refreshes it", c.refresh(secret, own), "done")
	issued, err := az.Emit(context.Background(), grant.Event{ID: "message-1", Operation: grant.Mention,
		Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "bookbot", Text: "@bookbot reserve Dune"})
	if err != nil {
		return err
	}
	fmt.Fprintln(c.out, "  Zhang San writes in group 42: @bookbot reserve Dune")
	delegation := c.token(secret, "grant_type", authz.GrantTypeOperation, "code", issued[0].Code.Reveal())
	c.step("  BookBot redeems the code for this operation", delegation, "done")
	c.step("  It reads his profile with the token for it", c.call("GET", "/me", delegation), "invalid_token")
	c.step("  It writes in group 42", c.call("POST", "/groups/42", delegation), "zhang-san through bookbot group:42/message.write")
	c.step("  It writes there once more", c.call("POST", "/groups/42", delegation), "used_up")
	return c.failed
}

type answer struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	Result  string `json:"result"`
	Error   string `json:"error"`
	Reason  string `json:"error_reason"`
}

func (c *client) step(what string, a answer, want string) {
	said := cmp.Or(a.Reason, a.Error, a.Result, "done")
	if said != want {
		c.failed = errors.Join(c.failed, fmt.Errorf("%s: %s, want %s", what, said, want))
	}
	fmt.Fprintf(c.out, "%s: %s\n", what, said)
}

// signIn is the way through the browser, with PKCE by that method or none.
func (c *client) signIn(method string) answer {
	proof, query := oauth2.GenerateVerifier(), url.Values{"response_type": {"code"}, "client_id": {"bookbot"}, "redirect_uri": {callback}}
	form := []string{"grant_type", "authorization_code", "redirect_uri", callback}
	if method != "" {
		query.Set("code_challenge_method", method)
		query.Set("code_challenge", oauth2.S256ChallengeFromVerifier(proof))
		form = append(form, "code_verifier", proof)
	}
	w := httptest.NewRecorder()
	c.server.ServeHTTP(w, httptest.NewRequest("GET", "/authorize?"+query.Encode(), nil))
	to, err := url.Parse(w.Header().Get("Location"))
	c.failed = errors.Join(c.failed, err)
	own := c.token(secret, append(form, "code", to.Query().Get("code"))...)
	c.step("  Zhang San signs in at BookBot", own, "done")
	return own
}

func (c *client) refresh(secret string, a answer) answer {
	return c.token(secret, "grant_type", "refresh_token", "refresh_token", a.Refresh)
}

func (c *client) token(secret string, pairs ...string) answer {
	form := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	r := httptest.NewRequest("POST", "/token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth("bookbot", secret)
	return c.do(r)
}

func (c *client) call(method, path string, a answer) answer {
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Authorization", "Bearer "+a.Access)
	return c.do(r)
}

func (c *client) do(r *http.Request) (a answer) {
	w := httptest.NewRecorder()
	c.server.ServeHTTP(w, r)
	c.failed = errors.Join(c.failed, json.Unmarshal(w.Body.Bytes(), &a))
	return a
}
