package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/webhook"
)

// social stands for the social server: it gives out one grant, redeems its code, and lets the token be used once.
func social() *httptest.Server {
	reply := func(w http.ResponseWriter, status int, v map[string]any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	var redeemed, uses, polls atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("POST /oauth2/token", func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("code") != "bhsc_example" || redeemed.Add(1) > 1 {
			reply(w, 400, map[string]any{"error": "invalid_grant"})
			return
		}
		reply(w, 200, map[string]any{"access_token": "bhst_example", "token_type": "Bearer", "expires_in": 600, "uses": 1,
			"scope": "group:42/message.write", "grant_id": "g1", "domain": "group:42", "sub": "pw-zhang"})
	})
	mux.HandleFunc("POST /oauth2/revoke", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /oauth2/grants", func(w http.ResponseWriter, r *http.Request) {
		if polls.Add(1) > 1 {
			<-r.Context().Done()
			return
		}
		reply(w, 200, map[string]any{"grants": []json.RawMessage{[]byte(exampleGrant)}})
	})
	mux.HandleFunc("POST /api/groups/42/messages", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer bhst_example" || uses.Add(1) > 1 {
			reply(w, 401, map[string]any{"error": "invalid_token", "error_reason": "used_up"})
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	return httptest.NewServer(mux)
}

const exampleGrant = `{"id":"g1","code":"bhsc_example","scope":"group:42/message.write","redeem_by":"2026-06-01T12:01:00Z",
	"event":{"id":"m1","operation":"mention","account":"pw-zhang","domain":"group:42","text":"@bookbot is it in?","at":"2026-06-01T12:00:00Z"}}`

// deliver sends the grant as the social server's webhook.
func deliver(hook string, key webhook.Key) int {
	body := []byte(`{"type":"grant.issued","timestamp":"2026-06-01T12:00:00Z","data":` + exampleGrant + `}`)
	req, err := http.NewRequest(http.MethodPost, hook, bytes.NewReader(body))
	if err != nil {
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	if err := webhook.Sign(req.Header, "msg_1", time.Now(), body, key); err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// The whole of an app: a webhook comes in, its code is redeemed, and a message goes out in the user's name.
func Example() {
	server := social()
	defer server.Close()
	key := webhook.NewSecret() // shared with the social server

	client := &app.Client{Issuer: server.URL, ID: "bookbot", Secret: app.NewSecret("s3cret")}
	post := func(ctx context.Context, token *app.Token, text string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/api/groups/42/messages", strings.NewReader(text))
		if err != nil {
			return err
		}
		resp, err := client.Do(req, token)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	receiver := &app.Receiver{Keys: []webhook.Key{key}, Handle: func(ctx context.Context, g app.Grant) error {
		fmt.Printf("%s wrote %q in %s\n", g.Event.Account, g.Event.Text, g.Event.Domain)
		token, err := client.Redeem(ctx, g.Code)
		if errors.Is(err, app.ErrInvalidGrant) {
			return nil // too late: a second delivery would not change that
		}
		if err != nil {
			return err // deliver it again
		}
		fmt.Printf("may %s, %d time\n", token.Scope, token.Uses)
		fmt.Println("posted:", post(ctx, token, "It is in.") == nil)
		err = post(ctx, token, "And again.")
		fmt.Println("a use too many:", errors.Is(err, app.ErrUsedUp))
		return nil
	}}
	hook := httptest.NewServer(receiver)
	defer hook.Close()

	fmt.Println(deliver(hook.URL, key))
	fmt.Println(deliver(hook.URL, key), "and not handled again")
	// Output:
	// pw-zhang wrote "@bookbot is it in?" in group:42
	// may group:42/message.write, 1 time
	// posted: true
	// a use too many: true
	// 204
	// 204 and not handled again
}

// Any key will do, so that keys can change; a stranger's will not.
func ExampleReceiver() {
	before, after := webhook.NewSecret(), webhook.NewSecret()
	hook := httptest.NewServer(&app.Receiver{
		Keys:   []webhook.Key{after, before},
		Log:    slog.New(slog.DiscardHandler), // this example refuses one on purpose
		Handle: func(_ context.Context, g app.Grant) error { fmt.Println("grant", g.ID); return nil },
	})
	defer hook.Close()
	fmt.Println(deliver(hook.URL, before))
	fmt.Println(deliver(hook.URL, webhook.NewSecret()))
	// Output:
	// grant g1
	// 204
	// 401
}

// An app that nobody can reach from outside asks for its grants.
func ExamplePoller() {
	server := social()
	defer server.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := &app.Client{Issuer: server.URL, ID: "bookbot", Secret: app.NewSecret("s3cret")}
	poller := &app.Poller{Client: client, Handle: func(ctx context.Context, g app.Grant) error {
		defer cancel() // one is enough here
		token, err := client.Redeem(ctx, g.Code)
		if err != nil {
			return err
		}
		fmt.Println(g.ID, "is good for", token.Domain)
		return client.Revoke(ctx, token) // done with it
	}}
	fmt.Println(poller.Run(ctx))
	// Output:
	// g1 is good for group:42
	// context canceled
}

// A code is redeemed once.
func ExampleClient_Redeem() {
	server := social()
	defer server.Close()
	client := &app.Client{Issuer: server.URL, ID: "bookbot", Secret: app.NewSecret("s3cret")}
	code := app.NewSecret("bhsc_example")
	token, err := client.Redeem(context.Background(), code)
	fmt.Println(token.Account, token.Scope, err)
	_, err = client.Redeem(context.Background(), code)
	fmt.Println(err)
	fmt.Println(errors.Is(err, app.ErrInvalidGrant))
	// Output:
	// pw-zhang group:42/message.write <nil>
	// app: the server refused: 400 invalid_grant
	// true
}

// The user clicked a link, and their browser brings the code.
func ExampleClient_Callback() {
	client := &app.Client{Issuer: "https://social.example", ID: "bookbot", Secret: app.NewSecret("s3cret")}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, err := client.Callback(r)
		if err != nil {
			http.Error(w, "this link does not work", http.StatusBadRequest)
			return
		}
		fmt.Println("to redeem:", code, code.Reveal())
		http.Redirect(w, r, "/welcome", http.StatusSeeOther) // the code leaves the address bar
	})
	for _, issuer := range []string{"https://social.example", "https://evil.example"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/cb?code=bhsc_1&iss="+url.QueryEscape(issuer), nil))
		fmt.Println(w.Code)
	}
	// Output:
	// to redeem: [redacted] bhsc_1
	// 303
	// 400
}

// What an API call can end in, and what an app does about it.
func ExampleError() {
	server := social()
	defer server.Close()
	client := &app.Client{Issuer: server.URL, ID: "bookbot", Secret: app.NewSecret("s3cret")}
	req, _ := http.NewRequest(http.MethodPost, server.URL+"/api/groups/42/messages", nil)
	_, err := client.Do(req, &app.Token{AccessToken: app.NewSecret("bhst_spent")})
	var refused *app.Error
	switch {
	case errors.Is(err, app.ErrUsedUp), errors.Is(err, app.ErrExpired), errors.Is(err, app.ErrRevoked):
		fmt.Println("over: the user has to ask again")
	case errors.As(err, &refused) && refused.RetryAfter > 0:
		fmt.Println("later")
	}
	fmt.Println(err)
	// Output:
	// over: the user has to ask again
	// app: the server refused: 401 invalid_token (used_up)
}

// For code that speaks golang.org/x/oauth2. The source does not refresh: only the user can cause another token.
func ExampleToken_TokenSource() {
	token := &app.Token{AccessToken: app.NewSecret("bhst_example"), GrantID: "g1", Expiry: time.Now().Add(time.Minute)}
	std, err := token.TokenSource().Token()
	fmt.Println(std.Type(), std.Extra("grant_id"), err)

	token.Expiry = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err = token.TokenSource().Token()
	fmt.Println(err)
	// Output:
	// Bearer g1 <nil>
	// app: the token has expired: it was good until 2026-01-01T00:00:00Z
}

// A secret does not show itself, in whatever it lies.
func ExampleSecret() {
	var grant app.Grant
	if err := json.Unmarshal([]byte(exampleGrant), &grant); err != nil {
		fmt.Println(err)
	}
	text, _ := json.Marshal(map[string]any{"id": grant.ID, "code": grant.Code})
	fmt.Printf("%v %s\n", grant.Code, text)
	fmt.Println(grant.Code.Reveal())
	// Output:
	// [redacted] {"code":"[redacted]","id":"g1"}
	// bhsc_example
}
