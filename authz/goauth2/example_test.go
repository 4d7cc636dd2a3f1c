package goauth2_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/models"
	"github.com/go-oauth2/oauth2/v4/server"
	oauthstore "github.com/go-oauth2/oauth2/v4/store"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/goauth2"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

func Example() {
	// What is there: a go-oauth2 server.
	manager := manage.NewDefaultManager()
	tokens, err := oauthstore.NewMemoryTokenStore()
	if err != nil {
		log.Fatal(err)
	}
	manager.MapTokenStorage(tokens)
	clients := oauthstore.NewClientStore()
	_ = clients.Set("bookbot", &models.Client{ID: "bookbot", Secret: "bookbot-secret", Domain: "https://bookbot.example/callback"})
	manager.MapClientStorage(clients)
	srv := server.NewDefaultServer(manager)

	// What is added: Behest, which knows the app too.
	az, err := authz.New(authz.Config{
		Issuer:   "https://social.example",
		Permit:   func(context.Context, grant.Access) error { return nil },
		Apps:     []authz.App{{ID: "bookbot", Name: "BookBot", Secret: grant.NewSecret("bookbot-secret"), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: time.Minute, Uses: 1}},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := goauth2.Harden(srv, goauth2.Config{Tokens: tokens, Store: store.NewMemory()}); err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /oauth/token", goauth2.Wrap(srv, az))
	whoami := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := srv.ValidationBearerToken(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "%q through %s, for %q", info.GetUserID(), info.GetClientID(), info.GetScope())
	})
	mux.Handle("GET /me", whoami)
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(goauth2.Show(whoami)))

	// zhang-san mentions the app, which redeems the code where it redeems its other codes.
	issued, err := az.Emit(context.Background(), grant.Event{ID: "m1", Operation: grant.Mention,
		Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "bookbot", Text: "@bookbot reserve Dune"})
	if err != nil {
		log.Fatal(err)
	}
	ask := func(form url.Values) (token, said string) {
		r := httptest.NewRequest("POST", "/oauth/token", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth("bookbot", "bookbot-secret")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		var answer struct {
			Token string `json:"access_token"`
			Error string `json:"error"`
		}
		_ = json.Unmarshal(w.Body.Bytes(), &answer)
		return answer.Token, strings.TrimSpace(fmt.Sprint(w.Code, " ", answer.Error))
	}
	operation := url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {issued[0].Code.Reveal()}}
	delegation, said := ask(operation)
	fmt.Println("operation grant:", said)
	_, said = ask(operation)
	fmt.Println("and again:", said)
	own, said := ask(url.Values{"grant_type": {"client_credentials"}})
	fmt.Println("client_credentials:", said)
	for _, call := range [][3]string{{"the app's own token", own, "GET /me"}, {"the delegation", delegation, "GET /me"},
		{"the app's own token", own, "POST /groups/42/messages"}, {"the delegation", delegation, "POST /groups/42/messages"}} {
		method, path, _ := strings.Cut(call[2], " ")
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set("Authorization", "Bearer "+call[1])
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code == 200 {
			fmt.Printf("%s with %s: %s\n", call[2], call[0], w.Body)
		} else {
			fmt.Printf("%s with %s: %d\n", call[2], call[0], w.Code)
		}
	}
	// Output:
	// operation grant: 200
	// and again: 400 invalid_grant
	// client_credentials: 200
	// GET /me with the app's own token: "" through bookbot, for ""
	// GET /me with the delegation: 401
	// POST /groups/42/messages with the app's own token: 401
	// POST /groups/42/messages with the delegation: "zhang-san" through bookbot, for "group:42/message.write"
}
