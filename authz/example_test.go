package authz_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

var (
	ctx    = context.Background()
	mux    = http.NewServeMux()
	secret = grant.NewSecret("a secret that the server made")
	group  = scope.MustDomain("group:42")
)

// mayDo asks the server's own rights: here, who is a member of what.
func mayDo(_ context.Context, a grant.Access) error {
	if a.Account == "zhang-san" && a.Scope.Domain().Root() == group {
		return nil
	}
	return grant.ErrDenied
}

// postMessage acts as the account of the delegation, in its domain, and keeps the app's name with the message.
var postMessage = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	d, _ := authz.FromContext(r.Context())
	text, _ := io.ReadAll(io.LimitReader(r.Body, 4096))
	fmt.Printf("%s, via %s, in %s: %s\n", d.Account, d.App, d.Domain, text)
	w.WriteHeader(http.StatusCreated)
})

func Example() {
	// README begin
	az, err := authz.New(authz.Config{
		Issuer: "https://social.example",
		Permit: mayDo, // may this account do this here, right now?
		Apps: []authz.App{{ID: "bookbot", Name: "BookBot", Secret: secret,
			Actions: []string{"message.write", "member.read"}}},
		Triggers: []grant.Trigger{{
			App: "bookbot", On: grant.Mention, In: "group:*",
			Allow: []string{"message.write"}, For: 10 * time.Minute, Uses: 3,
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	go az.Run(ctx)        // deliveries, expiry; nothing starts in New
	az.Routes(mux.Handle) // POST /oauth2/token and so on: exact patterns
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(postMessage))

	// where a user's message is saved:
	issued, err := az.Emit(ctx, grant.Event{ID: "message-1", Operation: grant.Mention,
		Account: "zhang-san", Domain: group, App: "bookbot", Text: "@bookbot reserve Dune"})
	// README end
	if err != nil {
		log.Fatal(err)
	}

	// What the app does: it redeems the code for a token, and calls the API with it.
	form := url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {issued[0].Code.Reveal()}}
	req := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("bookbot", url.QueryEscape(secret.Reveal()))
	res := httptest.NewRecorder()
	mux.ServeHTTP(res, req)
	_, token, _ := strings.Cut(res.Body.String(), `"access_token":"`)
	token, _, _ = strings.Cut(token, `"`)
	for _, path := range []string{"/groups/42/messages", "/groups/7/messages"} {
		req := httptest.NewRequest("POST", path, strings.NewReader("Dune is reserved."))
		req.Header.Set("Authorization", "Bearer "+token)
		res := httptest.NewRecorder()
		mux.ServeHTTP(res, req)
		fmt.Println(path, res.Code)
	}
	// Output:
	// zhang-san, via bookbot, in group:42: Dune is reserved.
	// /groups/42/messages 201
	// /groups/7/messages 403
}
