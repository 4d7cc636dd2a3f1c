package redisstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/internal/outage"
	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
)

const named = "redisstore: "

// lasting is a server that keeps what it acknowledges.
func lasting(tb testing.TB) *server {
	return start(tb, "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", "--aof-load-truncated", "no")
}

// TestCrash kills clients of Redis at random moments.
func TestCrash(t *testing.T) {
	for name, test := range map[string]struct {
		job    crash.Job
		rounds int
	}{"spending": {crash.Spending(), 60}, "granting": {crash.Granting(), 140}} {
		t.Run(name, func(t *testing.T) {
			server := lasting(t)
			s := open(t, server.client(), "crash")
			require.NoError(t, test.job.Prepare(t.Context(), s))
			n := crash.Rounds(test.rounds)
			said := crash.Kill(t, test.job, server.Addr(), n)
			require.Greater(t, len(said), n, "the processes hardly did anything")
			settled(t, server)
			done, err := test.job.Audit(t.Context(), s, said, n*crash.Workers)
			require.NoError(t, err)
			t.Logf("%d processes killed, %d writes acknowledged, %d done", n, len(said), len(done))
		})
	}
}

// settled waits until Redis has carried out what clients that are dead had sent.
func settled(t *testing.T, server *server) {
	c := server.client()
	require.True(t, server.eventually(10*time.Second, func() bool {
		list, err := c.ClientList(background).Result()
		return err == nil && !strings.Contains(list, "name="+victim)
	}), "clients that are dead are still there")
}

// TestServerCrash kills Redis itself.
func TestServerCrash(t *testing.T) {
	for name, job := range map[string]crash.Job{"spending": crash.Spending(), "granting": crash.Granting()} {
		t.Run(name, func(t *testing.T) {
			server := lasting(t)
			a, b := open(t, server.client(), "crash"), open(t, server.client(func(o *redis.Options) { o.ContextTimeoutEnabled = true }), "crash")
			got, err := outage.Restarts(t.Context(), named, job, []store.Store{a, b}, crash.Rounds(20), server.Kill, server.Start)
			require.NoError(t, err)
			require.Greater(t, got.Acknowledged, crash.Rounds(20)*8)
			t.Log(got)
		})
	}
}

// A store that keeps nothing is found out by the same test.
func TestServerCrashIsFoundOut(t *testing.T) {
	server := start(t, "--save", "", "--appendonly", "no")
	s := open(t, server.client(), "crash")
	_, err := outage.Restarts(t.Context(), named, crash.Spending(), []store.Store{s}, 1, server.Kill, server.Start)
	require.ErrorContains(t, err, "is refused")
}

// again is a store that does what nobody may do: it sends a write again.
type again struct{ store.Store }

func (s again) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	out, err := s.Store.Apply(ctx, now, ops)
	if err != nil && ctx.Err() == nil {
		return s.Store.Apply(ctx, now, ops)
	}
	return out, err
}

// hopeful takes an error for an answer.
type hopeful struct{ store.Store }

func (s hopeful) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	out, err := s.Store.Apply(ctx, now, ops)
	if err != nil && !errors.Is(err, store.ErrInvalid) {
		return store.Outcome{}, nil
	}
	return out, err
}

func TestCuts(t *testing.T) {
	server := quiet(t)
	for name, change := range map[string]func(o *redis.Options){
		"plain client":                      func(*redis.Options) {},
		"client with ContextTimeoutEnabled": func(o *redis.Options) { o.ContextTimeoutEnabled, o.MaxRetries = true, 5 },
	} {
		t.Run(name, func(t *testing.T) {
			proxy := servers.StartProxy(t, server.Addr())
			c := server.client(change, func(o *redis.Options) { o.Addr = proxy.Addr() })
			prefix := fresh()
			direct := open(t, server.client(), prefix)
			got, err := outage.Cuts(t.Context(), named, proxy, open(t, c, prefix), direct, 1)
			require.NoError(t, err)
			t.Log(got)
		})
	}
	// Stores that do otherwise are found out.
	for want, broken := range map[string]func(store.Store) store.Store{
		"carried out twice":  func(s store.Store) store.Store { return again{s} },
		"were taken for one": func(s store.Store) store.Store { return hopeful{s} },
	} {
		proxy := servers.StartProxy(t, server.Addr())
		prefix := fresh()
		s := broken(open(t, server.client(func(o *redis.Options) { o.Addr = proxy.Addr() }), prefix))
		_, err := outage.Cuts(t.Context(), named, proxy, s, open(t, server.client(), prefix), 20)
		require.ErrorContains(t, err, want)
	}
}

// TestOutage: with Redis away, each call of the store, the engine and the endpoints ends by its deadline and says why, and nothing is lost.
func TestOutage(t *testing.T) {
	server := lasting(t)
	proxy := servers.StartProxy(t, server.Addr())
	for name, change := range map[string]func(o *redis.Options){
		"plain client":                      func(*redis.Options) {},
		"client with ContextTimeoutEnabled": func(o *redis.Options) { o.ContextTimeoutEnabled = true },
	} {
		for how, harm := range map[string]struct {
			away, back func()
			unsure     bool
			limit      time.Duration
		}{
			"killed":  {server.Kill, server.Start, false, time.Second},
			"refused": {func() { proxy.Refuse(true) }, func() { proxy.Refuse(false) }, false, time.Second},
			"silent":  {func() { proxy.Set(servers.Hang()) }, func() { proxy.Set(servers.Fault{}); proxy.Drop() }, true, 200 * time.Millisecond},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				o, err := outage.Prepare(t.Context(), named, open(t, server.client(change, func(o *redis.Options) { o.Addr = proxy.Addr() }), fresh()))
				require.NoError(t, err)
				harm.away()
				err = o.Away(t.Context(), harm.limit)
				harm.back()
				require.NoError(t, err)
				require.NoError(t, o.Back(t.Context(), harm.unsure))
			})
		}
	}
}
