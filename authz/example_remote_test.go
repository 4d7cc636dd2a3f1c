package authz_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// The files of a group are served by another process than the chat. It has no store: it spends through the chat's server.
func ExampleRemote() {
	ctx := context.Background()
	mux := http.NewServeMux()
	chat := httptest.NewServer(mux)
	defer chat.Close()
	az, err := authz.New(authz.Config{
		Issuer: chat.URL,
		Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []authz.App{
			{ID: "bookbot", Secret: grant.NewSecret("bookbot-secret"), Actions: []string{"file.write"}},
			{ID: "files", Secret: grant.NewSecret("files-secret"), Introspect: true},
		},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"file.write"}, Uses: 2}},
	})
	if err != nil {
		panic(err)
	}
	az.Routes(mux.Handle)

	// In the other process:
	remote, err := authz.NewRemote(authz.RemoteConfig{Issuer: chat.URL, ClientID: "files", Secret: grant.NewSecret("files-secret")})
	if err != nil {
		panic(err)
	}
	files := http.NewServeMux()
	files.Handle("PUT /groups/{group}/files/{name}", remote.Require("group:{group}/file.write")(http.HandlerFunc(
		func(_ http.ResponseWriter, r *http.Request) {
			d, _ := authz.FromContext(r.Context())
			fmt.Printf("%s for %s via %s in %s, %d left\n", r.PathValue("name"), d.Account, d.App, d.Domain, d.Left)
		})))

	issued, err := az.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}
	_, token, err := az.Engine().Redeem(ctx, "bookbot", issued[0].Code)
	if err != nil {
		panic(err)
	}
	for _, path := range []string{"/groups/42/files/dune.txt", "/groups/7/files/dune.txt", "/groups/42/files/emma.txt", "/groups/42/files/ulysses.txt"} {
		r := httptest.NewRequest("PUT", path, nil)
		r.Header.Set("Authorization", "Bearer "+token.Reveal())
		w := httptest.NewRecorder()
		files.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			fmt.Print(w.Code, " ", w.Body)
		}
	}
	// Output:
	// dune.txt for zhang-san via bookbot in group:42, 1 left
	// 403 {"error":"insufficient_scope","error_description":"the token is for another domain","error_reason":"wrong_domain","scope":"group:7/file.write"}
	// emma.txt for zhang-san via bookbot in group:42, 0 left
	// 401 {"error":"invalid_token","error_description":"the token has no uses left","error_reason":"used_up"}
}

// A token that was never to be counted is verified by the resource server alone: it asks for the keys once, and for nothing else.
func ExampleJWTSigner() {
	mux := http.NewServeMux()
	chat := httptest.NewServer(mux)
	defer chat.Close()
	const files = "https://files.social.example"
	az, err := authz.New(authz.Config{
		Issuer:      chat.URL,
		Permit:      func(context.Context, grant.Access) error { return nil },
		Apps:        []authz.App{{ID: "bookbot", Secret: grant.NewSecret("bookbot-secret"), Actions: []string{"file.read"}, RealNames: true}},
		JWTAudience: files,
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"file.read"},
			Stateless: true, Uses: grant.Unlimited, For: 2 * time.Minute}},
	})
	if err != nil {
		panic(err)
	}
	az.Routes(mux.Handle)
	issued, err := az.Emit(context.Background(), grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}
	client := &app.Client{Issuer: chat.URL, ID: "bookbot", Secret: app.NewSecret("bookbot-secret")}
	token, err := client.Redeem(context.Background(), app.NewSecret(issued[0].Code.Reveal()))
	if err != nil {
		panic(err)
	}

	// In the other process, which is no client of the chat's:
	remote, err := authz.NewRemote(authz.RemoteConfig{Issuer: chat.URL, Resource: files})
	if err != nil {
		panic(err)
	}
	for _, want := range []string{"group:42/file.read", "group:42/folder:7/file.read", "group:42/file.write", "group:7/file.read"} {
		d, err := remote.Use(context.Background(), authz.Call{Token: token.AccessToken.Reveal(), Want: scope.MustParse(want)})
		if err != nil {
			fmt.Println(grant.Reason(err))
			continue
		}
		fmt.Println(d.Account, "via", d.App, "in", d.Domain, "unlimited:", d.Left == grant.Unlimited)
	}
	// Output:
	// zhang-san via bookbot in group:42 unlimited: true
	// zhang-san via bookbot in group:42/folder:7 unlimited: true
	// wrong_action
	// wrong_domain
}
