package authz_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A hub is a store that tells its listeners of what is due.
type hub struct {
	store.Store
	mu        sync.Mutex
	listeners map[int]func(app string)
	serial    int
	cut       chan struct{} // closed to end all that listen
	away      bool          // nobody can listen
	lossy     atomic.Bool   // nobody is told
	claims    sync.Map      // kind and app: *atomic.Int64
}

func newHub() *hub {
	return &hub{Store: store.NewMemory(), listeners: map[int]func(string){}, cut: make(chan struct{})}
}

func (h *hub) Listen(ctx context.Context, woke func(app string)) error {
	h.mu.Lock()
	if h.away {
		h.mu.Unlock()
		return errors.New("cannot listen")
	}
	h.serial++
	id, cut := h.serial, h.cut
	h.listeners[id] = woke
	h.mu.Unlock()
	woke("")
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.listeners, id)
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-cut:
		return errors.New("the connection was cut")
	}
}

func (h *hub) setAway(away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away = away; away {
		close(h.cut)
		h.cut = make(chan struct{})
	}
}

func (h *hub) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	out, err := h.Store.Apply(ctx, now, ops)
	if err == nil && out.Applied() && !h.lossy.Load() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, op := range ops {
			if r := &op.Record; op.Verb == store.VerbPut && !r.Due.IsZero() && !r.Due.After(now) {
				for _, woke := range h.listeners {
					woke(r.App)
				}
			}
		}
	}
	return out, err
}

func (h *hub) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	n, _ := h.claims.LoadOrStore(q.Kind+" "+q.App, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	return h.Store.Claim(ctx, q, until)
}

func (h *hub) count(kind, app string) int64 {
	n, ok := h.claims.Load(kind + " " + app)
	if !ok {
		return 0
	}
	return n.(*atomic.Int64).Load()
}

// hubbed makes servers over one hub, with the apps "one" and "two" that poll, and runs those after the first.
func hubbed(t *testing.T, nodes int, log *lockedBuffer, within time.Duration) ([]*authz.Server, *hub) {
	h := newHub()
	servers, _ := bubble(t, nodes, func(c *authz.Config) {
		c.Store, c.Apps, c.Triggers = h, nil, nil
		c.Log = slog.New(slog.NewTextHandler(log, nil))
		for _, id := range []string{"one", "two"} {
			c.Apps = append(c.Apps, authz.App{ID: id, Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}})
			c.Triggers = append(c.Triggers, grant.Trigger{App: id, On: grant.Mention, In: "*", Allow: []string{"message.write"}, RedeemWithin: within})
		}
	})
	for _, az := range servers[1:] {
		_ = background(t, func(ctx context.Context) { _ = az.Run(ctx) }) // ends with the test
	}
	synctest.Wait()
	return servers, h
}

// longPoll returns the answer's body, and when it came.
func longPoll(t *testing.T, az *authz.Server, app string) chan string {
	mux := http.NewServeMux()
	az.Routes(mux.Handle)
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/oauth2/grants?wait=30s", nil)
	r.SetBasicAuth(app, "long enough")
	answer := make(chan string, 1)
	go func() { answer <- serve(mux, r).Body.String() }()
	synctest.Wait()
	return answer
}

// What one node issues wakes those that wait for that app on another, at once, and no others.
func TestWakerWakesOtherNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		servers, h := hubbed(t, 2, &log, time.Minute)
		one, two := longPoll(t, servers[1], "one"), longPoll(t, servers[1], "two")
		before := h.count("poll", "two")
		began := time.Now()
		push(t, servers[0], "one", "m1")
		require.Contains(t, <-one, `"id":"m1"`)
		require.Zero(t, time.Since(began))
		synctest.Wait()
		require.Empty(t, two)
		require.Equal(t, before, h.count("poll", "two"), "the others slept on")
		time.Sleep(29 * time.Second)
		require.LessOrEqual(t, h.count("poll", "two"), int64(7), "and look every five seconds")
		<-two
		require.Empty(t, log.String())
	})
}

// Within one process the same, without a Waker.
func TestEmitWakesOnePoller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		servers, h := hubbed(t, 1, &log, time.Minute)
		one, two := longPoll(t, servers[0], "one"), longPoll(t, servers[0], "two")
		began := time.Now()
		push(t, servers[0], "two", "m1")
		require.Contains(t, <-two, `"id":"m1"`)
		require.Zero(t, time.Since(began))
		synctest.Wait()
		require.EqualValues(t, 1, h.count("poll", "one"))
		servers[0].Wake() // everybody
		synctest.Wait()
		require.EqualValues(t, 2, h.count("poll", "one"))
		<-one
	})
}

// An idle node asks the store a twentieth of what it asks without a Waker.
func TestWakerSavesLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		_, h := hubbed(t, 2, &log, time.Minute)
		looks := func() int64 {
			before := h.count("push", "")
			time.Sleep(time.Minute)
			return h.count("push", "") - before
		}
		require.InDelta(t, 12, looks(), 1)
		h.setAway(true)
		require.InDelta(t, 240, looks(), 1)
		h.setAway(false)
		time.Sleep(5 * time.Second)
		require.InDelta(t, 12, looks(), 1)
	})
}

// A notification that is lost costs time and no grant, however short its code lives.
func TestWakerThatLoses(t *testing.T) {
	for _, within := range []time.Duration{time.Second, 4 * time.Second, time.Minute} {
		t.Run(within.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lockedBuffer
				servers, h := hubbed(t, 2, &log, within)
				h.lossy.Store(true)
				time.Sleep(90 * time.Millisecond)
				answer := longPoll(t, servers[1], "one")
				time.Sleep(10 * time.Millisecond)
				began := time.Now()
				push(t, servers[0], "one", "m1")
				require.Contains(t, <-answer, `"id":"m1"`)
				require.LessOrEqual(t, time.Since(began), min(5*time.Second, within/4))
			})
		})
	}
}

// A trigger that comes while the server runs, and whose codes live shorter than those before, makes it look more often.
func TestWakerKeepsPaceWithTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		servers, h := hubbed(t, 2, &log, time.Minute)
		require.NoError(t, servers[0].Change(t.Context(), authz.Change{Triggers: []grant.Trigger{
			{App: "one", On: grant.Mention, In: "*", Allow: []string{"message.write"}, RedeemWithin: 2 * time.Second}}}))
		time.Sleep(2 * time.Second) // the other node has looked, and its last slow look is over
		h.lossy.Store(true)
		answer := longPoll(t, servers[1], "one")
		time.Sleep(10 * time.Millisecond)
		began := time.Now()
		push(t, servers[0], "one", "m1")
		require.Contains(t, <-answer, `"id":`)
		require.LessOrEqual(t, time.Since(began), 500*time.Millisecond)
	})
}

// A Waker that fails is asked again and again, quietly; meanwhile every node looks as if there were none.
func TestWakerThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		servers, h := hubbed(t, 2, &log, time.Minute)
		answer := longPoll(t, servers[1], "one")
		h.setAway(true)
		began := time.Now()
		push(t, servers[0], "one", "m1")
		require.Contains(t, <-answer, `"id":"m1"`)
		require.LessOrEqual(t, time.Since(began), 250*time.Millisecond)
		time.Sleep(5 * time.Minute)
		require.LessOrEqual(t, strings.Count(log.String(), "\n"), 5*6+2)
		require.Contains(t, log.String(), "msg=waker err=\"cannot listen\"")
		h.setAway(false)
		time.Sleep(5 * time.Second)
		require.Contains(t, log.String(), `msg="waker: well again"`)
		answer = longPoll(t, servers[1], "one")
		began = time.Now()
		push(t, servers[0], "one", "m2")
		require.Contains(t, <-answer, `"id":"m2"`)
		require.Zero(t, time.Since(began))
		// What was written while nobody listened is found as soon as somebody does.
		h.lossy.Store(true)
		answer = longPoll(t, servers[1], "one")
		push(t, servers[0], "one", "m3")
		h.setAway(true)
		require.Contains(t, <-answer, `"id":"m3"`)
	})
}

// A connection that was cut, and is there again after the first pause, is said to be well again, and the next cut is a
// new one.
func TestWakerThatIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		_, h := hubbed(t, 2, &log, time.Minute)
		for range 2 {
			h.setAway(true)
			h.setAway(false)
			time.Sleep(time.Hour)
		}
		require.Equal(t, 2, strings.Count(log.String(), "msg=waker err="), log.String())
		require.Equal(t, 2, strings.Count(log.String(), `msg="waker: well again" faults=1 after=1.25s`), log.String())
		// What comes and goes all the time fills no log.
		before := strings.Count(log.String(), "\n")
		for range 100 {
			h.setAway(true)
			h.setAway(false)
			time.Sleep(500 * time.Millisecond)
		}
		require.LessOrEqual(t, strings.Count(log.String(), "\n")-before, 6)
	})
}

// What is put off is tried when it is due, though nobody looks every 250 ms.
func TestWakerAndWhatIsPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		p := &pusher{at: map[string][]time.Duration{}, apps: map[string]int{}, from: time.Now(),
			post: func(_ context.Context, _ string, try int) (int, error) {
				if try < 6 {
					return 500, nil
				}
				return 200, nil
			}}
		servers, _ := bubble(t, 1, func(c *authz.Config) {
			c.Store = h
			c.Apps[0].Webhook = "https://apps.example/hook"
			c.Triggers[0].RedeemWithin = time.Hour
		})
		waits := make(chan struct{})
		d := &authz.Deliverer{Engine: servers[0].Engine(), Post: p.Post, Targets: map[string]authz.Target{"bookbot": {URL: "hook", Keys: []webhook.Key{webhook.NewSecret()}}},
			Wait: func(app string) (<-chan struct{}, time.Duration) {
				require.Empty(t, app)
				return waits, time.Hour
			}}
		issued, err := servers[0].Emit(t.Context(), grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
		require.NoError(t, err)
		defer background(t, d.Run)()
		time.Sleep(time.Minute)
		at := p.tried()[issued[0].ID]
		require.Len(t, at, 6)
		for n := 1; n < len(at); n++ {
			pause := min(500*time.Millisecond<<(n-1), 15*time.Second)
			require.GreaterOrEqual(t, at[n]-at[n-1], pause)
			require.LessOrEqual(t, at[n]-at[n-1], pause*5/4+250*time.Millisecond)
		}
		require.LessOrEqual(t, h.count("push", ""), int64(20))
	})
}
