package authz_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// An app whose tokens act with its key alone: who finds a code or a token cannot use it.
func ExampleDPoP() {
	key, err := app.NewKey(ed25519.NewKeyFromSeed(make([]byte, 32)), "2026-11") // a real one is made at random
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	web := httptest.NewServer(mux)
	defer web.Close()
	az, err := authz.New(authz.Config{
		Issuer: web.URL, Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []authz.App{{ID: "bookbot", JWKS: key.JWKS(), KeyBound: true, Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"},
			For: 10 * time.Minute, Uses: 3}},
	})
	if err != nil {
		panic(err)
	}
	az.Routes(mux.Handle)
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })))
	ctx := context.Background()
	issued, err := az.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}

	client := &app.Client{Issuer: web.URL, ID: "bookbot", Key: key, DPoP: key}
	token, err := client.Redeem(ctx, app.NewSecret(issued[0].Code.Reveal()))
	if err != nil {
		panic(err)
	}
	fmt.Println(token.Type)
	act := func(do func(*http.Request) (*http.Response, error)) {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, web.URL+"/groups/42/messages", nil)
		resp, err := do(req)
		if err != nil {
			fmt.Println(err)
			return
		}
		resp.Body.Close()
		fmt.Println(resp.Status)
	}
	act(func(req *http.Request) (*http.Response, error) { return client.Do(req, token) })
	act(func(req *http.Request) (*http.Response, error) { // a thief
		req.Header = http.Header{"Authorization": {"Bearer " + token.AccessToken.Reveal()}}
		return http.DefaultClient.Do(req)
	})
	// Output:
	// DPoP
	// 204 No Content
	// 401 Unauthorized
}
