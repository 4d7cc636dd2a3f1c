package authz_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// exampleServer is the server of the examples: bookbot may write where it was mentioned, and after a click.
func exampleServer() *authz.Server {
	az, err := authz.New(authz.Config{
		Issuer: "https://social.example",
		Permit: mayDo,
		Apps: []authz.App{{ID: "bookbot", Name: "BookBot", Secret: secret, Actions: []string{"message.write"},
			RedirectURIs: []string{"https://bookbot.example/opened"}}},
		Triggers: []grant.Trigger{
			{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 1},
			{App: "bookbot", On: grant.LinkOpen, In: "group:*", Allow: []string{"message.write"}},
			{App: "bookbot", On: grant.ReactionAdd, In: "group:*", Allow: []string{"message.write"}},
		},
	})
	if err != nil {
		panic(err)
	}
	return az
}

// exampleToken is what bookbot has after zhang-san has mentioned it in group 42, and it has redeemed the code.
func exampleToken(az *authz.Server) string {
	issued, err := az.Emit(ctx, grant.Event{ID: "message-1", Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "bookbot"})
	if err != nil {
		panic(err)
	}
	_, token, err := az.Engine().Redeem(ctx, "bookbot", issued[0].Code)
	if err != nil {
		panic(err)
	}
	return token.Reveal()
}

// An administrator takes an app off the air, on all servers that share the store, and puts it back.
func ExampleServer_Change() {
	az := exampleServer()
	token := exampleToken(az)
	use := func() {
		apps, _, err := az.Configuration(ctx)
		if err != nil {
			panic(err)
		}
		_, err = az.Use(ctx, authz.Call{Token: token, Want: scope.MustParse("group:42/message.write")})
		fmt.Printf("%s suspended: %v, refused: %q\n", apps[0].Name, apps[0].Suspended, grant.Reason(err))
	}
	if err := az.Change(ctx, authz.Change{SuspendApps: []string{"bookbot"}, By: "li-si"}); err != nil {
		panic(err)
	}
	use()
	if err := az.Change(ctx, authz.Change{ResumeApps: []string{"bookbot"}, By: "li-si"}); err != nil {
		panic(err)
	}
	use()
	// What would not do as a Config does not do as a change.
	fmt.Println(az.Change(ctx, authz.Change{Apps: []authz.App{{ID: "dj", Secret: grant.NewSecret("short")}}}))
	// Output:
	// BookBot suspended: true, refused: "revoked"
	// BookBot suspended: false, refused: ""
	// authz: app "dj": Secret has 5 bytes, want 8 to 256
}

// The path "/posts/{id}/replies" names no group, so the handler's own database says where the post is.
func ExampleServer_RequireFunc() {
	az := exampleServer()
	groupOf := map[string]string{"100": "group:42", "200": "group:7"} // by post
	guard := az.RequireFunc(func(r *http.Request) (scope.Scope, error) {
		where, ok := groupOf[r.PathValue("id")]
		if !ok {
			return scope.Scope{}, fmt.Errorf("post %s: %w", r.PathValue("id"), fs.ErrNotExist)
		}
		return scope.New(scope.MustDomain(where), "message.write")
	})
	mux := http.NewServeMux()
	mux.Handle("POST /posts/{id}/replies", guard(postMessage))

	token := exampleToken(az)
	for _, id := range []string{"200", "300", "100", "100"} {
		req := httptest.NewRequest("POST", "/posts/"+id+"/replies", strings.NewReader("Dune is reserved."))
		req.Header.Set("Authorization", "Bearer "+token)
		res := httptest.NewRecorder()
		mux.ServeHTTP(res, req)
		fmt.Println("post", id, res.Code)
	}
	// Output:
	// post 200 403
	// post 300 404
	// zhang-san, via bookbot, in group:42: Dune is reserved.
	// post 100 201
	// post 100 401
}

// Without HTTP: for gRPC, a queue, a router of one's own.
func ExampleServer_Use() {
	az := exampleServer()
	call := authz.Call{Token: exampleToken(az), Want: scope.MustParse("group:42/message.write")}
	for range 2 {
		d, err := az.Use(ctx, call)
		if err != nil {
			fmt.Println("refused:", grant.Reason(err))
			continue
		}
		fmt.Printf("%s, via %s, in %s, because of %s %s; %d left\n", d.Account, d.App, d.Domain, d.Operation, d.Event, d.Left)
	}
	fmt.Println(call) // shows no token
	// Output:
	// zhang-san, via bookbot, in group:42, because of mention message-1; 0 left
	// refused: used_up
	// call for group:42/message.write
}

// Handlers note what users did; what did not succeed, or nobody meant, did not happen.
func ExampleServer_Monitor() {
	az := exampleServer()
	save := func(text string) error {
		if text == "" {
			return errors.New("empty")
		}
		return nil
	}
	post := az.Monitor(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := r.PostFormValue("text")
		authz.Did(r.Context(), grant.Event{ID: "message-" + r.PostFormValue("n"), Operation: grant.Mention, Account: "zhang-san",
			Domain: group, App: "bookbot", Text: text})
		if err := save(text); err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	for n, text := range []string{"@bookbot reserve Dune", ""} {
		form := url.Values{"n": {fmt.Sprint(n + 1)}, "text": {text}}
		req := httptest.NewRequest("POST", "/messages", strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		post.ServeHTTP(httptest.NewRecorder(), req)
	}
	grants, err := az.Engine().Grants(ctx, "zhang-san", "", true)
	for _, g := range grants {
		fmt.Println(g.Event.ID, g.App, g.Scope())
	}
	fmt.Println(err)
	// Output:
	// message-1 bookbot group:42/message.write
	// <nil>
}

// Through the user's client: the click is a POST, its answer a redirect with a one-time code.
func ExampleIssued_Link() {
	az := exampleServer()
	open := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		issued, err := az.Emit(r.Context(), grant.Event{ID: "click-1", Operation: grant.LinkOpen, Account: "zhang-san", Domain: group, App: "bookbot"})
		if err != nil || len(issued) == 0 {
			http.Error(w, "try again", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Referrer-Policy", "no-referrer")
		http.Redirect(w, r, issued[0].Link(), http.StatusSeeOther)
	})
	res := httptest.NewRecorder()
	open.ServeHTTP(res, httptest.NewRequest("POST", "/links/bookbot", nil))
	link, err := url.Parse(res.Header().Get("Location"))
	fmt.Println(res.Code, link.Host+link.Path, err)
	fmt.Println(link.Query().Get("code")[:5]+"…", link.Query().Get("iss"))
	// Output:
	// 303 bookbot.example/opened <nil>
	// bhsc_… https://social.example
}

// A reaction is weak evidence that the user meant it: the grant waits until the user has said yes.
func ExampleServer_Decide() {
	az := exampleServer()
	issued, err := az.Emit(ctx, grant.Event{ID: "reaction-1", Operation: grant.ReactionAdd, Account: "zhang-san", Domain: group, App: "bookbot", Target: "📚"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(issued[0].State, issued[0].Code.IsZero())
	_, err = az.Decide(ctx, "li-si", issued[0].ID, true)
	fmt.Println("somebody else:", err)
	decided, err := az.Decide(ctx, "zhang-san", issued[0].ID, true)
	fmt.Println(decided.State, decided.Code, err) // a code does not print
	// Output:
	// pending true
	// somebody else: grant: unknown: no such grant
	// issued [redacted] <nil>
}

// FromContext is how a handler knows on whose behalf it acts; outside Require there is nobody.
func ExampleFromContext() {
	_, ok := authz.FromContext(context.Background())
	fmt.Println(ok)
	// Output: false
}
