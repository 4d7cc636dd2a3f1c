package authz_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// Two nodes of every store, in real time, for the promise is about it. The test says how long it took.
func TestP5ConfigurationOnTwoNodes(t *testing.T) {
	stores.Everywhere(t, func(t *testing.T, s stores.Maker) {
		t.Parallel()
		node := s.New(t)
		configuration(t, oneOfMany{node()}, oneOfMany{node()})
	})
}

// oneOfMany hides that a store is this process's alone.
type oneOfMany struct{ store.Store }

const configLease = 3 * time.Second

// configuration changes apps and triggers on one node and looks at the other: what was changed holds there when the
// call returns, which is after 3 s; a node that is cut off lets nothing through; and the history of changes stays
// short. The store must be empty, and a and b two handles of it.
func configuration(t *testing.T, a, b store.Store) {
	ctx := t.Context()
	far := &cable{Store: b}
	var ahead atomic.Int64 // how far the clock of the second node is
	server := func(st store.Store, now func() time.Time) *authz.Server {
		az, err := authz.New(authz.Config{
			Issuer: "https://social.example", Store: st, Key: grant.NewSecret(strings.Repeat("k", 32)), Now: now,
			Permit:   func(context.Context, grant.Access) error { return nil },
			Apps:     []authz.App{{ID: "bookbot", Secret: grant.NewSecret("book-secret"), Actions: []string{"message.write"}}},
			Triggers: []grant.Trigger{{ID: "mention", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: grant.Unlimited}},
		})
		require.NoError(t, err)
		return az
	}
	first := server(a, nil)
	second := server(far, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	serial := 0
	event := func(app string) grant.Event {
		serial++
		return grant.Event{ID: fmt.Sprint("m", serial), Operation: grant.Mention, Account: "zhang-san", App: app, Domain: scope.MustDomain("group:42")}
	}
	emit := func(az *authz.Server, app string, want int) []authz.Issued {
		t.Helper()
		issued, err := az.Emit(ctx, event(app))
		require.NoError(t, err)
		if len(issued) != want {
			t.Fatalf("%d grants for %s, want %d", len(issued), app, want)
		}
		return issued
	}
	use := func(az *authz.Server, token grant.Secret) error {
		_, err := az.Use(ctx, authz.Call{Token: token.Reveal(), Want: scope.MustParse("group:42/message.write")})
		return err
	}
	// change makes a change on the first node while the other is asked whether it holds.
	change := func(c authz.Change, holds func() bool) {
		t.Helper()
		if holds() {
			t.Fatal("it holds before")
		}
		began, done, held := time.Now(), make(chan error, 1), time.Duration(0)
		go func() { done <- first.Change(ctx, c) }()
		for waiting := true; waiting; {
			select {
			case err := <-done:
				require.NoError(t, err)
				waiting = false
			case <-time.After(50 * time.Millisecond):
				if held == 0 && holds() {
					held = time.Since(began)
				}
			}
		}
		returned := time.Since(began)
		if !holds() {
			t.Fatal("the call has returned, and it does not hold on the other node")
		}
		if returned < configLease || returned > configLease+10*time.Second {
			t.Fatalf("the call returned after %v", returned)
		}
		t.Logf("held on the other node after %v, the call returned after %v", held, returned)
	}

	_, token, err := first.Engine().Redeem(ctx, "bookbot", emit(first, "bookbot", 1)[0].Code)
	require.NoError(t, err)
	require.NoError(t, use(second, token))

	// An app and its trigger, with secrets, are there on the other node.
	mux := http.NewServeMux()
	second.Routes(mux.Handle)
	authenticates := func() bool {
		r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader(url.Values{"grant_type": {"client_credentials"}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth("dj", "the-secret-of-dj")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w.Code == http.StatusOK
	}
	change(authz.Change{By: "li-si", Apps: []authz.App{{ID: "dj", Secret: grant.NewSecret("the-secret-of-dj"), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{ID: "play", App: "dj", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}}}}, authenticates)
	emit(second, "dj", 1)
	change(authz.Change{SuspendApps: []string{"bookbot"}, By: "li-si"}, func() bool { return use(second, token) != nil })
	if err := use(second, token); grant.Reason(err) != "revoked" {
		t.Fatalf("refused with %v", err)
	}
	emit(second, "bookbot", 0)

	// Cut off, it goes by what it saw for three seconds, and then lets nothing through.
	far.cut.Store(true)
	emit(second, "bookbot", 0)
	ahead.Add(int64(configLease))
	for name, call := range map[string]func() error{
		"Emit":   func() error { _, err := second.Emit(ctx, event("nobody")); return err },
		"Use":    func() error { return use(second, token) },
		"Change": func() error { return second.Change(ctx, authz.Change{ResumeApps: []string{"bookbot"}}) },
	} {
		if err := call(); !errors.Is(err, errCut) || grant.Reason(err) != "" {
			t.Fatalf("%s on a node that is cut off: %v", name, err)
		}
	}
	far.cut.Store(false)
	emit(second, "dj", 1)

	// Many changes, of both nodes at once, none of which waits: each is made, and they are put together.
	const many = 70
	alone := []*authz.Server{server(&here{Store: a}, nil), server(&here{Store: b}, nil)}
	var wg sync.WaitGroup
	for i, az := range alone {
		wg.Go(func() {
			for n := range many {
				c := authz.Change{Apps: []authz.App{{ID: fmt.Sprintf("app%d-%d", i, n%9), Name: fmt.Sprint(n), Secret: grant.NewSecret("the-secret-of-all")}}}
				if err := az.Change(ctx, c); err != nil {
					t.Errorf("change %d on node %d: %v", n, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, first.Engine().Look(ctx))
	started := server(b, nil)
	want, _, err := first.Configuration(ctx)
	require.NoError(t, err)
	got, _, err := started.Configuration(ctx)
	require.NoError(t, err)
	if len(got) != 2+2*9 || !slices.EqualFunc(got, want, func(x, y authz.App) bool { return x.ID == y.ID && x.Name == y.Name && x.Suspended == y.Suspended }) {
		t.Fatalf("a node that starts goes by %v, the other by %v", got, want)
	}
	records, err := a.List(ctx, store.Query{Kind: "config", Limit: store.MaxPage})
	require.NoError(t, err)
	if n := len(records); n > 3+2*64 { // a compaction that meets another change leaves it to the next
		t.Fatalf("%d records after %d changes", n, 2+2*many)
	}
	for _, r := range records {
		for _, text := range []string{"the-secret-of", "li-si", "bookbot"} {
			if strings.Contains(string(r.Data), text) {
				t.Fatalf("record %s shows %q", r.ID, text)
			}
		}
	}
}

var errCut = errors.New("the cable is cut")

// A cable leads to a store, until it is cut.
type cable struct {
	store.Store
	cut atomic.Bool
}

func (c *cable) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if c.cut.Load() {
		return nil, errCut
	}
	return c.Store.Get(ctx, kind, ids...)
}

func (c *cable) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	if c.cut.Load() {
		return store.Outcome{}, errCut
	}
	return c.Store.Apply(ctx, now, ops)
}

// here says of a store that it is this process's alone, so that changes do not wait.
type here struct {
	store.Store
	moved atomic.Uint64
}

func (h *here) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	defer h.moved.Add(1)
	return h.Store.Apply(ctx, now, ops)
}

func (h *here) Watch(string) func() uint64 { return h.moved.Load }
