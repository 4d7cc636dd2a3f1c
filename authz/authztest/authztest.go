// Package authztest is a social server for the unit tests of those who embed behest, or who write apps for it.
//
// The laws:
//
//  1. It is the real thing: a real authz.Server behind a real HTTP server on loopback, a real store, real webhooks. Nothing is mocked but the clock.
//  2. Time stands still until the test moves it.
//  3. Everything ends with the test.
//
// Use:
//
//	s := authztest.New(t, authz.Config{Apps: apps, Triggers: triggers})
//	s.Handle("POST /groups/{group}/messages", s.Require("group:{group}/message.write")(postMessage))
//	res := s.Do(s.Token("bookbot", "zhang-san", "group:42"), "POST", "/groups/42/messages", `{"text":"hello"}`)
//	s.Clock.Advance(time.Hour) // now the token is expired
package authztest

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// InboxWebhook, as the Webhook of an app in the Config, has the app's pushes delivered to the Server's Inbox.
const InboxWebhook = "inbox"

// A Server is an authz.Server that listens.
type Server struct {
	*authz.Server
	URL   string // where it listens: the issuer
	Clock *Clock
	Inbox *Inbox

	tb      testing.TB
	mux     *http.ServeMux
	secrets map[string]string
	serial  atomic.Int64
}

// testOperation is what Token pretends that the account did.
const testOperation = grant.Operation("authztest.token")

// New starts a Server with c, in which it fills in what is missing: Issuer and Now are its own always, Permit allows
// everything unless set, and an app without any credentials gets a Secret. Any fault in c fails the test. Every app also gets a
// trigger for Token, for all of its actions.
func New(tb testing.TB, c authz.Config) *Server {
	tb.Helper()
	s := &Server{Clock: NewClock(), tb: tb, mux: http.NewServeMux(), secrets: map[string]string{}}
	s.Inbox = &Inbox{server: s, receivers: map[string]*app.Receiver{}, arrived: make(chan Delivery, 1024)}
	web := httptest.NewUnstartedServer(s.mux)
	s.URL = "http://" + web.Listener.Addr().String()
	c.Issuer, c.Now = s.URL, s.Clock.Now
	if c.Permit == nil {
		c.Permit = func(context.Context, grant.Access) error { return nil }
	}
	c.Apps = append([]authz.App(nil), c.Apps...)
	c.Triggers = append([]grant.Trigger(nil), c.Triggers...)
	c.AllowWebhooksTo = append([]string{web.Listener.Addr().String()}, c.AllowWebhooksTo...)
	var inboxes []string
	for i := range c.Apps {
		a := &c.Apps[i]
		if a.Secret.IsZero() && a.SecretHash.IsZero() && a.JWKS == "" && a.AuthMethod != "none" {
			a.Secret = grant.NewSecret("secret-of-" + a.ID)
		}
		s.secrets[a.ID] = a.Secret.Reveal()
		if a.Webhook == InboxWebhook {
			a.Webhook = s.URL + "/authztest/inbox/" + url.PathEscape(a.ID)
			inboxes = append(inboxes, a.ID)
		}
		if len(a.Actions) > 0 {
			c.Triggers = append(c.Triggers, grant.Trigger{ID: "authztest:" + a.ID, App: a.ID, On: testOperation, In: "*",
				Allow: a.Actions, For: time.Hour, Uses: 1000, Consent: grant.Implied, Deliver: grant.Poll})
		}
	}
	az, err := authz.New(c)
	if err != nil {
		web.Close()
		tb.Fatalf("authztest: %v", err)
	}
	s.Server = az
	az.Routes(s.mux.Handle)
	for _, id := range inboxes {
		s.mux.Handle("POST /authztest/inbox/"+id, s.Inbox.receive(id))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = az.Run(ctx)
	}()
	web.Start()
	tb.Cleanup(func() {
		cancel()
		web.CloseClientConnections() // long polls
		web.Close()
		<-ended
	})
	return s
}

// Handle registers a handler of the test's, as http.ServeMux does.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Client returns the app's side: it authenticates as that app.
func (s *Server) Client(id string) *app.Client {
	s.tb.Helper()
	secret, ok := s.secrets[id]
	if !ok {
		s.tb.Fatalf("authztest: no app %q", id)
	}
	return &app.Client{Issuer: s.URL, ID: id, Secret: app.NewSecret(secret), Now: s.Clock.Now}
}

// Token returns a delegation token of the app for the account in the domain: all of the app's actions, for an hour,
// 1000 uses. It is a real one, caused by an operation "authztest.token".
func (s *Server) Token(id, account, domain string) string {
	s.tb.Helper()
	d, err := scope.ParseDomain(domain)
	if err != nil {
		s.tb.Fatalf("authztest: %v", err)
	}
	issued := s.MustEmit(grant.Event{ID: "token-" + strconv.FormatInt(s.serial.Add(1), 10), Operation: testOperation, Account: account, Domain: d, App: id})
	return s.Redeem(issued[0])
}

// MustEmit emits an event that must issue something.
func (s *Server) MustEmit(ev grant.Event) []authz.Issued {
	s.tb.Helper()
	issued, err := s.Emit(s.tb.Context(), ev)
	if err != nil || len(issued) == 0 {
		s.tb.Fatalf("authztest: %s issued %d grants: %v", ev.Operation, len(issued), err)
	}
	return issued
}

// Redeem redeems the grant's code over HTTP, as its app, and returns the token.
func (s *Server) Redeem(i authz.Issued) string {
	s.tb.Helper()
	t, err := s.Client(i.App).Redeem(s.tb.Context(), app.NewSecret(i.Code.Reveal()))
	if err != nil {
		s.tb.Fatalf("authztest: %v", err)
	}
	return t.AccessToken.Reveal()
}

// An Answer is what Do brings back.
type Answer struct {
	Status int
	Header http.Header
	Body   string
	Reason string // error_reason of a refusal; empty if there is none
}

// Do sends a request with the token, if it is not empty, and a JSON body, if that is not empty.
func (s *Server) Do(token, method, path, body string) Answer {
	s.tb.Helper()
	req, err := http.NewRequestWithContext(s.tb.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		s.tb.Fatalf("authztest: %v", err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: 10 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		s.tb.Fatalf("authztest: %v", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		s.tb.Fatalf("authztest: %v", err)
	}
	var refusal struct {
		Reason string `json:"error_reason"`
	}
	_ = json.Unmarshal(text, &refusal) // not every answer is JSON
	return Answer{res.StatusCode, res.Header, string(text), refusal.Reason}
}

// A Clock stands still until it is moved. It begins at a fixed time and is safe for concurrent use.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a Clock that stands at noon of the first of January 2026, UTC.
func NewClock() *Clock { return &Clock{now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)} }

// Now is what the Clock shows; it is authz.Config.Now.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the Clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A Delivery is a push that arrived in the Inbox, verified and for the first time.
type Delivery struct {
	App   string
	Grant app.Grant
}

// An Inbox receives the pushes of the apps whose Webhook is InboxWebhook. Each push is verified with both of the app's keys.
type Inbox struct {
	server    *Server
	mu        sync.Mutex
	fail      int
	receivers map[string]*app.Receiver
	arrived   chan Delivery
}

// Fail has the next n pushes answered with a 500, as an app does that is down.
func (in *Inbox) Fail(n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fail = n
}

// Next waits for the next delivery; the test fails if none comes within ten seconds.
func (in *Inbox) Next() Delivery {
	in.server.tb.Helper()
	select {
	case d := <-in.arrived:
		return d
	case <-time.After(10 * time.Second):
		in.server.tb.Fatal("authztest: no delivery within ten seconds")
		return Delivery{}
	}
}

// Empty reports whether nothing has arrived that Next has not returned.
func (in *Inbox) Empty() bool { return len(in.arrived) == 0 }

func (in *Inbox) receive(id string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in.mu.Lock()
		refuse := in.fail > 0
		if refuse {
			in.fail--
		}
		receiver, err := in.receiver(id)
		in.mu.Unlock()
		if refuse || err != nil {
			http.Error(w, "the app is down", http.StatusInternalServerError)
			return
		}
		receiver.ServeHTTP(w, r)
	})
}

// receiver is made at the first push, when the server exists that knows the keys.
func (in *Inbox) receiver(id string) (*app.Receiver, error) {
	if r := in.receivers[id]; r != nil {
		return r, nil
	}
	var keys []webhook.Key
	for _, text := range []string{in.server.WebhookSecret(id).Reveal(), in.server.WebhookKey(id)} {
		k, err := webhook.ParseKey(text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	in.receivers[id] = &app.Receiver{Keys: keys, Now: in.server.Clock.Now, Handle: func(ctx context.Context, g app.Grant) error {
		select {
		case in.arrived <- Delivery{id, g}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	return in.receivers[id], nil
}
