// Go-oauth2 is a server that runs on go-oauth2, as its quick start has it, before and after it takes Behest in: what
// changes is the function migrate. It prints what comes of each step, and exits with an error if that is not as told.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/models"
	"github.com/go-oauth2/oauth2/v4/server"
	oauthstore "github.com/go-oauth2/oauth2/v4/store"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/goauth2"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

const callback, secret = "https://bookbot.example/cb", "bookbot-secret"

// quickStart is the server that is there.
func quickStart(tokens oauth2.TokenStore, mux *http.ServeMux) *server.Server {
	manager, clients := manage.NewDefaultManager(), oauthstore.NewClientStore()
	_ = clients.Set("bookbot", &models.Client{ID: "bookbot", Secret: secret, Domain: callback})
	manager.MapClientStorage(clients)
	manager.MapTokenStorage(tokens)
	srv := server.NewDefaultServer(manager)
	srv.SetUserAuthorizationHandler(func(http.ResponseWriter, *http.Request) (string, error) { return "zhang-san", nil })
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, r *http.Request) { _ = srv.HandleAuthorizeRequest(w, r) })
	mux.Handle("GET /me", me(srv))
	return srv
}

// me is a handler that is there: it asks go-oauth2 whose token that is.
func me(srv *server.Server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := map[string]string{"error": "invalid_token"}
		if info, err := srv.ValidationBearerToken(r); err == nil {
			answer = map[string]string{"result": info.GetUserID() + " through " + info.GetClientID() + " " + info.GetScope()}
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
}

// migrate closes what can be closed from outside, and adds Behest's grants and what apps may do in a user's name.
func migrate(srv *server.Server, tokens oauth2.TokenStore, mux *http.ServeMux) (*authz.Server, error) {
	az, err := authz.New(authz.Config{Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil },
		Apps:     []authz.App{{ID: "bookbot", Secret: grant.NewSecret(secret), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: time.Minute, Uses: 1}}})
	if err != nil {
		return nil, err
	}
	mux.Handle("POST /token", goauth2.Wrap(srv, az)) // was srv.HandleTokenRequest
	mux.Handle("POST /groups/{group}", az.Require("group:{group}/message.write")(goauth2.Show(me(srv))))
	return az, goauth2.Harden(srv, goauth2.Config{Tokens: tokens, Store: store.NewMemory()})
}

func main() {
	for _, migrated := range []bool{false, true} {
		if err := run(os.Stdout, migrated); err != nil {
			log.Fatal(err)
		}
	}
}

// run is the server, before or after, and what its clients get of it.
func run(out io.Writer, migrated bool) error {
	tokens, err := oauthstore.NewMemoryTokenStore()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	srv := quickStart(tokens, mux)
	c := &client{out: out, server: mux}
	if !migrated {
		mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) { _ = srv.HandleTokenRequest(w, r) })
		return c.before()
	}
	az, err := migrate(srv, tokens, mux)
	if err != nil {
		return err
	}
	return c.after(az)
}
