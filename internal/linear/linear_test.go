package linear

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const (
	clients = 8
	steps   = 12 // of each client, with one account
	// checking is how long porcupine may take for one history; it takes milliseconds.
	checking = 20 * time.Second
)

// How many accounts, each of which is a history.
var accounts = map[string]int{"memory": 150, "sqlite": 25, "postgresql": 25, "redis": 40, "cluster": 20}

func TestHistoriesAreLinearizable(t *testing.T) {
	check := func(t *testing.T, s stores.Maker) {
		seed := uint64(time.Now().UnixNano())
		var seen tally
		w := newWorld(t, s.New(t), func(_ int, st store.Store) store.Store { return st })
		for i := range accounts[s.Name] {
			history := w.history(seed+uint64(i), &seen)
			if result := porcupine.CheckOperationsTimeout(model, history, checking); result != porcupine.Ok {
				t.Fatalf("porcupine says %s (seed %d) to\n%s", result, seed+uint64(i), describe(history))
			}
		}
		t.Logf("%d histories of %d clients on 2 nodes: %v", accounts[s.Name], clients, &seen)
		// That all of it occurred, and not only what nothing can go wrong with.
		require.NotZero(t, seen.lost, "no answer got lost")
		require.NotZero(t, seen.done, "nothing was done of which the answer got lost")
		for _, what := range []string{"redeem ok", "redeem used_up", "redeem revoked", "use ok", "use used_up", "use revoked", "introspect ok", "introspect used_up", "introspect revoked", "revoke ok", "revoke app ok", "revoke account ok"} {
			require.NotZero(t, seen.told[what], "%s never occurred", what)
		}
	}
	stores.Everywhere(t, check)
}

// A tally is what occurred.
type tally struct {
	mu         sync.Mutex
	told       map[string]int
	operations int
	lost       int // answers
	done       int // calls of the store that were carried out although their answers got lost; counted where we lose them
}

func (n *tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d operations, of which %d had no answer, %d of them done all the same at least;", n.operations, n.lost, n.done)
	for v := redeem; v <= revokeAccount; v++ {
		for _, told := range []string{"ok", "used_up", "revoked", lost} {
			if k := n.told[v.String()+" "+told]; k > 0 {
				fmt.Fprintf(&b, " %s %s %d,", v, told, k)
			}
		}
	}
	return strings.TrimSuffix(b.String(), ",")
}

// A world is two nodes on one store.
type world struct {
	t       testing.TB
	engines [2]*grant.Engine
	lossy   [2]*lossy
	serial  int
}

// newWorld opens the store for each node; broken may put something in front of it.
func newWorld(t testing.TB, open func() store.Store, broken func(node int, s store.Store) store.Store) *world {
	w := &world{t: t}
	for i := range w.engines {
		w.lossy[i] = &lossy{Store: broken(i, open())}
		trigger := func(app string) grant.Trigger {
			return grant.Trigger{ID: app, App: app, On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: uses}
		}
		e, err := grant.NewEngine(grant.Config{
			Store: w.lossy[i], Key: grant.NewSecret(strings.Repeat("k", 32)), Permit: func(context.Context, grant.Access) error { return nil },
			Apps:     []grant.App{{ID: "bookbot", Actions: []string{"message.write"}}, {ID: "weather", Actions: []string{"message.write"}}},
			Triggers: []grant.Trigger{trigger("bookbot"), trigger("weather")},
		})
		require.NoError(t, err)
		w.engines[i] = e
	}
	return w
}

// An account is one with its grants, and what its clients know of them.
type account struct {
	name   string
	grants [grants]grant.Grant
	tokens [grants]atomic.Pointer[string] // once an answer has told one
	clock  atomic.Int64                   // counts questions and answers
}

func (w *world) account() *account {
	w.serial++
	a := &account{name: fmt.Sprint("account", w.serial)}
	for i := range grants {
		got, err := w.engines[0].Emit(context.Background(), grant.Event{ID: fmt.Sprint("m", i), Operation: grant.Mention, Account: a.name, App: apps[i], Domain: scope.MustDomain(domains[i])})
		require.NoError(w.t, err)
		require.Len(w.t, got, 1)
		a.grants[i] = got[0]
	}
	return a
}

// history lets the clients at a new account, and returns what they asked and were told.
func (w *world) history(seed uint64, seen *tally) (all []porcupine.Operation) {
	a := w.account()
	perClient := make([][]porcupine.Operation, clients)
	var ready, done sync.WaitGroup
	ready.Add(clients)
	for _, l := range w.lossy {
		l.begin(seed, 0.08)
	}
	for i := range clients {
		done.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			ready.Done()
			ready.Wait()
			for j := range steps {
				ctx, cancel := context.Background(), func() {}
				switch rnd.IntN(16) {
				case 0: // from far too short to nearly long enough
					ctx, cancel = context.WithTimeout(ctx, time.Duration(float64(20*time.Microsecond)*math.Pow(2, 9*rnd.Float64())))
				case 1:
					ctx, cancel = context.WithCancel(ctx)
					go cancel()
				}
				perClient[i] = append(perClient[i], w.ask(ctx, a, i, next(rnd, a, j)))
				cancel()
			}
		})
	}
	done.Wait()
	for _, l := range w.lossy {
		l.end()
	}
	for _, some := range perClient {
		all = append(all, some...)
	}
	// What each node says in the end.
	for i := range w.engines {
		for g := range grants {
			if a.tokens[g].Load() != nil {
				all = append(all, w.ask(context.Background(), a, i, input{introspect, g}))
			}
			all = append(all, w.ask(context.Background(), a, i, input{redeem, g}))
		}
	}
	seen.add(all, w.lossy[:])
	return all
}

// next is what a client does with one of the grants, of which it takes up one after another: more and more revocations
// towards the end, also of grants that nobody has taken up.
func next(rnd *rand.Rand, a *account, step int) input {
	in := input{use, rnd.IntN(min(grants, 1+step/2))}
	switch k := rnd.IntN(40); {
	case k < 6:
		in.verb = redeem
	case k < 14:
		in.verb = introspect
	case k < 15:
		return input{revokeGrant, rnd.IntN(grants)}
	case k < 16 && step > 4:
		return input{revokeApp, rnd.IntN(grants)}
	case k < 17 && step > 9:
		return input{revokeAccount, rnd.IntN(grants)}
	}
	if a.tokens[in.grant].Load() == nil {
		in.verb = redeem
	}
	return in
}

// ask has a client's node do it, and records it.
func (w *world) ask(ctx context.Context, a *account, client int, in input) porcupine.Operation {
	e, g := w.engines[client%len(w.engines)], in.grant
	op := porcupine.Operation{ClientId: client, Input: in, Call: a.clock.Add(1)}
	var out output
	var err error
	switch in.verb {
	case redeem:
		var token grant.Secret
		_, token, err = e.Redeem(ctx, apps[g], a.grants[g].Code)
		if text := token.Reveal(); err == nil {
			a.tokens[g].Store(&text)
		}
	case use:
		var d *grant.Delegation
		if d, err = e.Use(ctx, *a.tokens[g].Load(), scope.MustParse(domains[g]+"/message.write")); err == nil {
			out.left = d.Left
		}
	case introspect:
		var d *grant.Delegation
		if d, err = e.Inspect(ctx, grant.NewSecret(*a.tokens[g].Load())); err == nil {
			out.left = d.Left
		}
	case revokeGrant:
		err = e.Revoke(ctx, a.name, a.grants[g].ID)
	case revokeApp:
		err = e.RevokeApp(ctx, a.name, apps[g], scope.MustDomain(domains[g]))
	case revokeAccount:
		err = e.RevokeAccount(ctx, a.name)
	}
	out.told = cmp.Or(grant.Reason(err), lost)
	if err == nil {
		out.told = "ok"
	}
	op.Output, op.Return = out, a.clock.Add(1)
	if out.told == lost {
		op.Return = op.Call // see state: it may happen from here on
		if !errors.Is(err, errLost) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			w.t.Errorf("%v: %v", in, err)
		}
	}
	return op
}

func (n *tally) add(history []porcupine.Operation, networks []*lossy) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.told == nil {
		n.told = map[string]int{}
	}
	n.operations += len(history)
	for _, op := range history {
		in, out := op.Input.(input), op.Output.(output)
		n.told[in.verb.String()+" "+out.told]++
		if out.told == lost {
			n.lost++
		}
	}
	for _, l := range networks {
		n.done += int(l.done.Swap(0))
	}
}

var errLost = errors.New("the connection is gone")

// lossy is a network between a node and its store: some calls do not arrive, some answers get lost, and some calls arrive
// when nobody waits for them any more.
type lossy struct {
	store.Store
	mu     sync.Mutex
	rnd    *rand.Rand
	chance float64 // of each of the three
	late   sync.WaitGroup
	done   atomic.Int64
}

func (l *lossy) begin(seed uint64, chance float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rnd, l.chance = rand.New(rand.NewPCG(seed, 99)), chance/3
}

// end waits for what is still on its way, and loses nothing more.
func (l *lossy) end() {
	l.mu.Lock()
	l.chance = 0
	l.mu.Unlock()
	l.late.Wait()
}

func (l *lossy) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	l.mu.Lock()
	luck := math.Inf(1)
	if l.chance > 0 {
		luck = l.rnd.Float64() / l.chance
	}
	l.mu.Unlock()
	switch {
	case luck < 1:
		return store.Outcome{}, errLost
	case luck < 2:
		if out, err := l.Store.Apply(ctx, now, ops); err == nil && out.Applied() {
			l.done.Add(1)
		}
		return store.Outcome{}, errLost
	case luck < 3:
		kept := clone(ops)
		l.late.Go(func() {
			if out, err := l.Store.Apply(context.WithoutCancel(ctx), now, kept); err == nil && out.Applied() {
				l.done.Add(1)
			}
		})
		return store.Outcome{}, errLost
	}
	return l.Store.Apply(ctx, now, ops)
}

func clone(ops []store.Op) []store.Op {
	kept := append([]store.Op(nil), ops...)
	for i := range kept {
		kept[i].Record.Data = append([]byte(nil), kept[i].Record.Data...)
		kept[i].Record.ID = strings.Clone(kept[i].Record.ID)
	}
	return kept
}
