package outage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const (
	app    = "bookbot"
	secret = "the secret of bookbot"
	uses   = 5
)

var (
	group  = scope.MustDomain("group:42")
	write  = scope.MustParse("group:42/message.write")
	issuer = "https://social.example"
)

func newEngine(st store.Store) (*grant.Engine, error) {
	return grant.NewEngine(grant.Config{
		Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)), Permit: permit, Now: clock,
		Apps:     []grant.App{{ID: app, Actions: []string{write.Action()}}},
		Triggers: triggers(),
	})
}

func clock() time.Time { return now }

// permit knows nobody by the name of mallory.
func permit(_ context.Context, a grant.Access) error {
	if a.Account == "mallory" {
		return grant.ErrDenied
	}
	return nil
}

func triggers() []grant.Trigger {
	return []grant.Trigger{
		{App: app, On: grant.Mention, In: "group:*", Allow: []string{write.Action()}, Uses: uses},
		{App: app, On: grant.ReactionAdd, In: "group:*", Allow: []string{write.Action()}, Consent: grant.Always},
	}
}

func event(id, account string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: account, App: app, Domain: group}
}

// issued emits, and requires one grant.
func issued(ctx context.Context, e *grant.Engine, ev grant.Event) (grant.Grant, error) {
	got, err := e.Emit(ctx, ev)
	if err == nil && len(got) != 1 {
		err = fmt.Errorf("%d grants", len(got))
	}
	if err != nil {
		return grant.Grant{}, fmt.Errorf("emit %s: %w", ev.ID, err)
	}
	return got[0], nil
}

// redeemed is issued, and redeemed.
func redeemed(ctx context.Context, e *grant.Engine, ev grant.Event) (grant.Grant, grant.Secret, error) {
	g, err := issued(ctx, e, ev)
	if err != nil {
		return g, grant.Secret{}, err
	}
	_, token, err := e.Redeem(ctx, app, g.Code)
	return g, token, err
}

// An Outage is a social server whose store will be away: grants in every state, an engine, and the endpoints of
// authz. Make it with Prepare, while the store is there.
type Outage struct {
	name   string
	store  store.Store
	engine *grant.Engine
	mux    *http.ServeMux
	server *authz.Server
	log    lockedBuffer
	// waiting has a code that nobody has redeemed, pending a question, and token is alive.
	waiting, pending grant.Grant
	token            grant.Secret
	revoked          map[string]grant.Secret // of accounts that Away revokes, or fails to
	grants           map[string]grant.Grant  // theirs
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Prepare makes grants in st, whose errors begin with name and the call.
func Prepare(ctx context.Context, name string, st store.Store) (*Outage, error) {
	o := &Outage{name: name, store: st, mux: http.NewServeMux(), grants: map[string]grant.Grant{}, revoked: map[string]grant.Secret{}}
	var err error
	if o.engine, err = newEngine(st); err != nil {
		return nil, err
	}
	o.server, err = authz.New(authz.Config{
		Issuer: issuer, Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)), Permit: permit, Now: clock,
		Apps: []authz.App{{ID: app, Secret: grant.NewSecret(secret), Actions: []string{write.Action()}, Introspect: true}}, Triggers: triggers(),
		Log: slog.New(slog.NewTextHandler(&o.log, nil)),
	})
	if err != nil {
		return nil, err
	}
	o.server.Routes(o.mux.Handle)
	o.mux.Handle("POST /groups/{group}/messages", o.server.Require("group:{group}/message.write")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
	})))
	e := o.engine
	if o.waiting, err = issued(ctx, e, event("waiting", "zhang-san")); err != nil {
		return nil, err
	}
	if _, o.token, err = redeemed(ctx, e, event("alive", "zhang-san")); err != nil {
		return nil, err
	}
	question := event("question", "zhang-san")
	question.Operation = grant.ReactionAdd
	if o.pending, err = issued(ctx, e, question); err != nil {
		return nil, err
	}
	for _, account := range []string{"mary", "nora", "olga", "paul", "quentin"} {
		if o.grants[account], o.revoked[account], err = redeemed(ctx, e, event("revoked", account)); err != nil {
			return nil, err
		}
	}
	// A refusal waits to be written.
	if _, err := e.Emit(ctx, event("no", "mallory")); !errors.Is(err, grant.ErrDenied) {
		return nil, fmt.Errorf("mallory: %v", err)
	}
	return o, nil
}

// A call is what a social server asks its store or its engine, and what the store is asked first because of that.
type call struct {
	what, asks string
	do         func(ctx context.Context) error
}

func (o *Outage) calls() []call {
	s, e := o.store, o.engine
	here := store.Query{Kind: "grant", DueBy: now}
	return []call{
		{"store get", "get", func(ctx context.Context) error { _, err := s.Get(ctx, "grant", "a.1"); return err }},
		{"store list", "list", func(ctx context.Context) error { _, err := s.List(ctx, here); return err }},
		{"store apply", "apply", func(ctx context.Context) error {
			_, err := s.Apply(ctx, now, []store.Op{store.Put(store.Record{Kind: "other", ID: "a.1"})})
			return err
		}},
		{"store claim", "claim", func(ctx context.Context) error { _, err := s.Claim(ctx, here, now.Add(time.Minute)); return err }},
		{"store purge", "purge", func(ctx context.Context) error { _, err := s.Purge(ctx, "other", now, 1); return err }},
		{"emit", "apply", func(ctx context.Context) error { _, err := e.Emit(ctx, event("new", "zhang-san")); return err }},
		{"emit again", "apply", func(ctx context.Context) error { _, err := e.Emit(ctx, event("waiting", "zhang-san")); return err }},
		{"redeem", "get", func(ctx context.Context) error { _, _, err := e.Redeem(ctx, app, o.waiting.Code); return err }},
		{"use", "apply", func(ctx context.Context) error { _, err := e.Use(ctx, o.token.Reveal(), write); return err }},
		{"inspect", "get", func(ctx context.Context) error { _, err := e.Inspect(ctx, o.token); return err }},
		{"decide", "get", func(ctx context.Context) error { _, err := e.Decide(ctx, "zhang-san", o.pending.ID, true); return err }},
		{"revoke", "apply", func(ctx context.Context) error { return e.Revoke(ctx, "olga", o.grants["olga"].ID) }},
		{"revoke token", "apply", func(ctx context.Context) error { return e.RevokeToken(ctx, app, o.revoked["paul"]) }},
		{"revoke app", "apply", func(ctx context.Context) error { return e.RevokeApp(ctx, "mary", app, group) }},
		{"revoke account", "apply", func(ctx context.Context) error { return e.RevokeAccount(ctx, "nora") }},
		{"grants", "list", func(ctx context.Context) error { _, err := e.Grants(ctx, "zhang-san", "", true); return err }},
		{"ledger", "list", func(ctx context.Context) error { _, err := e.Ledger(ctx, "zhang-san", "", 10); return err }},
		{"claim", "claim", func(ctx context.Context) error {
			_, err := e.Claim(ctx, grant.Poll, "", nil, 10, time.Minute)
			return err
		}},
		{"purge", "purge", func(ctx context.Context) error { _, err := e.Purge(ctx, 10); return err }},
		{"flush", "apply", func(ctx context.Context) error { return e.Flush(ctx) }},
		{"authz emit", "apply", func(ctx context.Context) error { _, err := o.server.Emit(ctx, event("new2", "zhang-san")); return err }},
		{"authz use", "apply", func(ctx context.Context) error {
			_, err := o.server.Use(ctx, authz.Call{Token: o.token.Reveal(), Want: write})
			return err
		}},
	}
}

type request struct {
	what, asks string
	bearer     bool
	path       string
	form       url.Values
}

func (o *Outage) requests() []request {
	return []request{
		{"a protected handler", "apply", true, "/groups/42/messages", nil},
		{"POST /oauth2/token", "get", false, "/oauth2/token", url.Values{"grant_type": {"urn:behest:grant-type:operation"}, "code": {o.waiting.Code.Reveal()}}},
		{"POST /oauth2/introspect", "get", false, "/oauth2/introspect", url.Values{"token": {o.token.Reveal()}}},
		{"POST /oauth2/revoke", "apply", false, "/oauth2/revoke", url.Values{"token": {o.revoked["quentin"].Reveal()}}},
		{"GET /oauth2/grants", "claim", false, "/oauth2/grants", nil},
	}
}

// Away requires of each call, while the store is away, that it fails within limit, and says which store and what. All are made at once.
func (o *Outage) Away(ctx context.Context, limit time.Duration) error {
	var all sync.WaitGroup
	var mu sync.Mutex
	var faults []error
	run := func(what string, check func(ctx context.Context) error) {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			began := time.Now()
			err := check(ctx)
			if took := time.Since(began); err == nil && took > limit+slack {
				err = fmt.Errorf("it took %v, its deadline was %v", took, limit)
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				faults = append(faults, fmt.Errorf("outage: %s: %w", what, err))
			}
		})
	}
	for _, c := range o.calls() {
		run(c.what, func(ctx context.Context) error {
			err := c.do(ctx)
			switch {
			case err == nil:
				return errors.New("it does not fail")
			case !o.names(err.Error(), c.asks):
				return fmt.Errorf("an error that does not name the store and the call (%s%s): %w", o.name, c.asks, err)
			case grant.Reason(err) != "", errors.Is(err, grant.ErrUnknown), errors.Is(err, grant.ErrInvalid), errors.Is(err, grant.ErrLimited):
				return fmt.Errorf("an error that looks like a refusal: %w", err)
			}
			return nil
		})
	}
	for _, r := range o.requests() {
		run(r.what, func(ctx context.Context) error { return o.unavailable(ctx, r) })
	}
	all.Wait()
	for _, r := range o.requests() {
		if !o.names(o.log.String(), r.asks) {
			faults = append(faults, fmt.Errorf("outage: %s: the log does not tell of %s%s", r.what, o.name, r.asks))
		}
	}
	return errors.Join(faults...)
}

// names reports whether text says which store and what; or that it was the configuration which could not be looked at, for
// which one call asks the store and others wait.
func (o *Outage) names(text, asks string) bool {
	return strings.Contains(text, o.name+asks) || strings.Contains(text, "grant: the configuration: ")
}

// unavailable requires a 503 that tells the client nothing of the cause.
func (o *Outage) unavailable(ctx context.Context, r request) error {
	method := http.MethodPost
	if r.form == nil && !r.bearer {
		method = http.MethodGet
	}
	req := httptest.NewRequestWithContext(ctx, method, issuer+r.path, strings.NewReader(r.form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if r.bearer {
		req.Header.Set("Authorization", "Bearer "+o.token.Reveal())
	} else {
		req.SetBasicAuth(app, url.QueryEscape(secret))
	}
	rec := httptest.NewRecorder()
	o.mux.ServeHTTP(rec, req)
	body := rec.Body.String()
	switch {
	case rec.Code != http.StatusServiceUnavailable:
		return fmt.Errorf("the answer is %d: %s", rec.Code, body)
	case rec.Header().Get("Retry-After") == "":
		return errors.New("the answer has no Retry-After")
	case !strings.Contains(body, "temporarily_unavailable") || strings.Contains(body, strings.TrimSpace(o.name)):
		return fmt.Errorf("the answer is %s", body)
	}
	return nil
}

// Back requires, now that the store is there again, that nothing is lost: that what was to be had before is to be had.
// unsure is that calls made by Away may have happened, each once, because they had reached the store.
func (o *Outage) Back(ctx context.Context, unsure bool) error {
	e := o.engine
	fail := func(what string, err error) error { return fmt.Errorf("outage: afterwards, %s: %w", what, err) }
	// The first calls may still hear of connections that broke.
	var err error
	back, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	if !servers.Eventually(back, nil, func() bool { _, err = o.store.Get(back, "grant", "a.1"); return err == nil }) {
		return fail("the store", err)
	}
	if _, _, err := e.Redeem(ctx, app, o.waiting.Code); err != nil {
		return fail("a code that waited", err)
	}
	if _, _, err := e.Redeem(ctx, app, o.waiting.Code); !errors.Is(err, grant.ErrUsedUp) {
		return fail("a code redeemed twice", err)
	}
	spent := 0
	for ; spent <= uses; spent++ {
		if _, err := e.Use(ctx, o.token.Reveal(), write); errors.Is(err, grant.ErrUsedUp) {
			break
		} else if err != nil {
			return fail("a use", err)
		}
	}
	const asked = 3 // how often Away asks for a use of it
	if spent > uses || spent < uses && !unsure || spent < uses-asked {
		return fail("a token", fmt.Errorf("%d uses of %d", spent, uses))
	}
	for _, id := range []string{"new", "new2"} {
		if _, _, err := redeemed(ctx, e, event(id, "zhang-san")); err != nil {
			return fail("an event emitted again", err)
		}
	}
	if _, err := e.Decide(ctx, "zhang-san", o.pending.ID, true); err != nil {
		return fail("a question", err)
	}
	for account, token := range o.revoked {
		if _, err := e.Use(ctx, token.Reveal(), write); err != nil && !(unsure && errors.Is(err, grant.ErrRevoked)) {
			return fail("the token of "+account, err)
		}
		if err := e.RevokeAccount(ctx, account); err != nil {
			return fail("a revocation", err)
		}
		if _, err := e.Use(ctx, token.Reveal(), write); !errors.Is(err, grant.ErrRevoked) {
			return fail("a use after a revocation", fmt.Errorf("it says %w", err))
		}
	}
	if err := e.Flush(ctx); err != nil {
		return fail("the refusals that waited", err)
	}
	var entries []grant.Entry
	entries, err = e.Ledger(ctx, "mallory", "", 10)
	if err == nil && (len(entries) == 0 || entries[0].What != "refused") {
		err = fmt.Errorf("the ledger has %+v", entries)
	}
	if err != nil {
		return fail("a refusal", err)
	}
	return nil
}
