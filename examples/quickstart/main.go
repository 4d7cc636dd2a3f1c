// Quickstart is the whole story in one process: a social server that embeds behest, and an app that only talks HTTP to it.
// It prints each step, and exits with an error if a step does not come out as told.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := run(ctx, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer) error {
	// The social server. Its members are in group 42; bookbot may write for who mentions it there, twice.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	issuer := "http://" + listener.Addr().String()
	az, err := authz.New(authz.Config{
		Issuer: issuer,
		Permit: func(_ context.Context, a grant.Access) error {
			if a.Account == "zhang-san" && a.Scope.Domain().Root().String() == "group:42" {
				return nil
			}
			return grant.ErrDenied
		},
		Apps: []authz.App{{ID: "bookbot", Name: "BookBot", Secret: grant.NewSecret("bookbot-secret"), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*",
			Allow: []string{"message.write"}, For: 10 * time.Minute, Uses: 2}},
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	az.Routes(mux.Handle)
	mux.Handle("POST /groups/{group}/messages", az.Require("group:{group}/message.write")(http.HandlerFunc(postMessage(out))))
	server := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // ends with Close
	defer server.Close()

	// The app.
	bot := &app.Client{Issuer: issuer, ID: "bookbot", Secret: app.NewSecret("bookbot-secret")}
	post := func(token *app.Token, group, text string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, issuer+"/groups/"+group+"/messages", strings.NewReader(text))
		if err != nil {
			return err
		}
		res, err := bot.Do(req, token) // an *app.Error if the server refuses
		if err == nil {
			err = res.Body.Close()
		}
		return err
	}
	var failed error
	step := func(what string, err error, want string) {
		said := "done"
		if no := (*app.Error)(nil); errors.As(err, &no) {
			said = cmp.Or(no.Reason, no.Code)
		} else if err != nil {
			said = "failed"
		}
		if said != want {
			failed = errors.Join(failed, err, fmt.Errorf("%s: %s, want %s", what, said, want))
		}
		fmt.Fprintf(out, "%s: %s\n", what, said)
	}

	forged := &app.Token{AccessToken: app.NewSecret("bhst_made-up"), Expiry: time.Now().Add(time.Hour)}
	step("BookBot acts without a grant", post(forged, "42", "Buy now!"), "invalid_token")
	fmt.Fprintln(out, "Zhang San writes in group 42: @bookbot reserve Dune for me")
	if _, err := az.Emit(ctx, grant.Event{ID: "message-1", Operation: grant.Mention, Account: "zhang-san",
		Domain: scope.MustDomain("group:42"), App: "bookbot", Text: "@bookbot reserve Dune for me"}); err != nil {
		return err
	}
	grants, err := bot.Grants(ctx, 5*time.Second)
	if err != nil || len(grants) != 1 {
		return errors.Join(err, fmt.Errorf("poll: %d grants", len(grants)))
	}
	fmt.Fprintf(out, "BookBot hears of it: %q, may %s\n", grants[0].Event.Text, grants[0].Scope)
	token, err := bot.Redeem(ctx, grants[0].Code)
	step("BookBot redeems the code, for two uses", err, "done")
	_, err = bot.Redeem(ctx, grants[0].Code)
	step("It redeems the code again", err, "invalid_grant")
	step("It writes in group 42", post(token, "42", "Dune is reserved."), "done")
	step("It writes in group 7", post(token, "7", "Buy now!"), "wrong_domain")
	step("It writes in group 42", post(token, "42", "It waits at the desk."), "done")
	step("It writes in group 42", post(token, "42", "Buy now!"), "used_up")
	return failed
}

// postMessage acts as the user: in the delegation's account and domain, and says through which app.
func postMessage(out io.Writer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		d, _ := authz.FromContext(r.Context())
		text, _ := io.ReadAll(io.LimitReader(r.Body, 1000))
		fmt.Fprintf(out, "  %s | %s, via %s: %s\n", d.Domain, d.Account, d.App, text)
		w.WriteHeader(http.StatusCreated)
	}
}
