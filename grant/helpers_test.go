package grant_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

var (
	ctx   = context.Background()
	key   = grant.NewSecret(strings.Repeat("k", 32))
	start = time.Date(2026, 3, 14, 9, 26, 53, 589793000, time.UTC)

	group = scope.MustDomain("group:42")
	write = scope.MustParse("group:42/message.write")
)

// A clock stands still until it is told to go on.
type clock struct{ us atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.set(start)
	return c
}

func (c *clock) now() time.Time          { return time.UnixMicro(c.us.Load()) }
func (c *clock) set(t time.Time)         { c.us.Store(t.UnixMicro()) }
func (c *clock) advance(d time.Duration) { c.us.Add(d.Microseconds()) }

// A probe counts the calls that a store gets, keeps what was applied, and loses calls or answers on demand.
type probe struct {
	store.Store
	*watch
}

// A watch is what the probes of all nodes share.
type watch struct {
	mu      sync.Mutex
	calls   map[string]int
	applied [][]store.Op
	// before and after are asked at each call, by its number from 1; an error of before keeps the call from
	// happening, one of after loses its answer.
	before, after func(n int, call string) error
	n             int
	// hook runs before an Apply, to let something happen between a look and a write.
	hook func()
}

func newProbe(s store.Store) *probe { return &probe{s, &watch{calls: map[string]int{}}} }

var errStore = errors.New("the store is away")

func (p *probe) enter(call string) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	p.calls[call]++
	if p.before != nil {
		return p.n, p.before(p.n, call)
	}
	return p.n, nil
}

func (p *probe) leave(n int, call string, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && p.after != nil {
		return p.after(n, call)
	}
	return err
}

func (p *probe) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	n, err := p.enter("get")
	if err != nil {
		return nil, err
	}
	out, err := p.Store.Get(ctx, kind, ids...)
	return out, p.leave(n, "get", err)
}

func (p *probe) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	n, err := p.enter("list")
	if err != nil {
		return nil, err
	}
	out, err := p.Store.List(ctx, q)
	return out, p.leave(n, "list", err)
}

func (p *probe) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	p.mu.Lock()
	hook := p.hook
	p.hook = nil
	p.mu.Unlock()
	if hook != nil {
		hook()
	}
	n, err := p.enter("apply")
	if err != nil {
		return store.Outcome{}, err
	}
	out, err := p.Store.Apply(ctx, now, ops)
	if err == nil && out.Applied() {
		kept := slices.Clone(ops)
		for i := range kept { // the store may keep nothing of what it is given
			kept[i].Record.Data = slices.Clone(kept[i].Record.Data)
		}
		p.mu.Lock()
		p.applied = append(p.applied, kept)
		p.mu.Unlock()
	}
	return out, p.leave(n, "apply", err)
}

func (p *probe) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	n, err := p.enter("claim")
	if err != nil {
		return nil, err
	}
	out, err := p.Store.Claim(ctx, q, until)
	return out, p.leave(n, "claim", err)
}

func (p *probe) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	i, err := p.enter("purge")
	if err != nil {
		return 0, err
	}
	out, err := p.Store.Purge(ctx, kind, before, n)
	return out, p.leave(i, "purge", err)
}

// reset forgets what was counted and kept, and fails nothing more.
func (p *probe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls, p.applied, p.before, p.after, p.n, p.hook = map[string]int{}, nil, nil, nil, 0, nil
}

func (p *probe) count(call string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[call]
}

func (p *probe) total() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *probe) batches() [][]store.Op {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.applied)
}

// kinds of records that the engine writes.
var kinds = []string{"event", "grant", "token", "revocation", "consent", "window", "once", "proof", "ledger", "push", "poll", "redirect", "config"}

// everything in the store.
func (p *probe) everything(t testing.TB) []store.Record {
	var all []store.Record
	for _, kind := range kinds {
		q := store.Query{Kind: kind, Limit: store.MaxPage}
		for {
			page, err := p.Store.List(ctx, q)
			require.NoError(t, err)
			all = append(all, page...)
			if len(page) < q.Limit {
				break
			}
			q.After = page[len(page)-1].ID
		}
	}
	return all
}

func (p *probe) ofKind(t testing.TB, kind string) []store.Record {
	return slices.DeleteFunc(p.everything(t), func(r store.Record) bool { return r.Kind != kind })
}

// A world is a clock, a store and an engine, or several, with a permit that can be changed.
type world struct {
	t      testing.TB
	clock  *clock
	store  *probe             // of the first node
	node   func() store.Store // opens the store for one more
	config grant.Config
	*grant.Engine
	mu      sync.Mutex
	permit  func(context.Context, grant.Access) error
	engines []*grant.Engine
}

func bookbot() grant.App {
	return grant.App{ID: "bookbot", Name: "BookBot", Actions: []string{"message.write", "message.read", "member.read"}}
}

func weather() grant.App {
	return grant.App{ID: "weather", Actions: []string{"message.write", "message.read"}}
}

func onMention() grant.Trigger {
	return grant.Trigger{ID: "mention", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 3}
}

// newWorld has two apps and, unless change says otherwise, one trigger. Its store is in memory.
func newWorld(t testing.TB, change func(*grant.Config)) *world {
	return on(stores.Memory(t))(t, change)
}

// on is newWorld with stores of that sort.
func on(s stores.Maker) func(testing.TB, func(*grant.Config)) *world {
	return func(t testing.TB, change func(*grant.Config)) *world { return makeWorld(t, s.New(t), change) }
}

func makeWorld(t testing.TB, node func() store.Store, change func(*grant.Config)) *world {
	w := &world{t: t, clock: newClock(), store: newProbe(node()), node: node}
	w.config = grant.Config{
		Store: w.store, Key: key, Now: w.clock.now,
		Apps:     []grant.App{bookbot(), weather()},
		Triggers: []grant.Trigger{onMention()},
		Permit: func(ctx context.Context, a grant.Access) error {
			w.mu.Lock()
			permit := w.permit
			w.mu.Unlock()
			if permit == nil {
				return nil
			}
			return permit(ctx, a)
		},
	}
	if change != nil {
		change(&w.config)
	}
	w.Engine = w.another()
	w.store.reset()
	return w
}

// another engine on the same store, which it opens as another node would, with the same key. It has looked for the
// configuration as a server's Run does: what a call costs is counted from there.
func (w *world) another() *grant.Engine {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.config
	if len(w.engines) > 0 && c.Store == store.Store(w.store) {
		c.Store = &probe{w.node(), w.store.watch}
	}
	e, err := grant.NewEngine(c)
	require.NoError(w.t, err)
	require.NoError(w.t, e.Look(ctx))
	w.engines = append(w.engines, e)
	return e
}

// nodes are two engines that share one store, each with a handle of its own.
func (w *world) nodes() []*grant.Engine { return []*grant.Engine{w.Engine, w.another()} }

func (w *world) setPermit(permit func(context.Context, grant.Access) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.permit = permit
}

func mention(id string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: group, Text: "@bookbot find Dune"}
}

func (w *world) emit(ev grant.Event) grant.Grant {
	w.t.Helper()
	got, err := w.Emit(ctx, ev)
	require.NoError(w.t, err)
	require.Len(w.t, got, 1)
	return got[0]
}

func (w *world) redeem(g grant.Grant) string {
	w.t.Helper()
	_, token, err := w.Redeem(ctx, g.App, g.Code)
	require.NoError(w.t, err)
	return token.Reveal()
}

// token emits, redeems and returns what an app has in hand.
func (w *world) token(id string) string {
	w.t.Helper()
	return w.redeem(w.emit(mention(id)))
}

func (w *world) ledger(account string) []grant.Entry {
	w.t.Helper()
	for _, e := range w.engines {
		require.NoError(w.t, e.Flush(ctx))
	}
	got, err := w.Ledger(ctx, account, "", 1000)
	require.NoError(w.t, err)
	return got
}

// words of the ledger, counted.
func (w *world) whats(account string) map[string]int {
	w.t.Helper()
	out := map[string]int{}
	for _, e := range w.ledger(account) {
		out[e.What] += e.Count
	}
	return out
}

// together runs n goroutines that start at one moment, and returns their errors.
func together(n int, f func(i int) error) []error {
	errs := make([]error, n)
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-gate
			errs[i] = f(i)
		})
	}
	close(gate)
	wg.Wait()
	return errs
}

// winners counts the nils, and requires that all other errors wrap one of those.
func winners(t testing.TB, errs []error, losers ...error) int {
	t.Helper()
	n := 0
	for _, err := range errs {
		if err == nil {
			n++
			continue
		}
		require.True(t, slices.ContainsFunc(losers, func(l error) bool { return errors.Is(err, l) }), "a loser was told: %v", err)
	}
	return n
}

func allow(actions ...string) func(context.Context, grant.Access) error {
	return func(_ context.Context, a grant.Access) error {
		if slices.Contains(actions, a.Scope.Action()) {
			return nil
		}
		return fmt.Errorf("%w: not in this test", grant.ErrDenied)
	}
}

func scopeOf(domain string) (scope.Scope, error) { return scope.Parse(domain + "/message.write") }

type ctxT = context.Context
