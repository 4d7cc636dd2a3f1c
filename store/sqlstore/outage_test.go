package sqlstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/internal/outage"
	"github.com/behest-go/behest/internal/servers"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

const named = "sqlstore: PostgreSQL: "

// node is a store on a server of the test's own, which is asked at addr.
func node(t *testing.T, addr, schema string) *sqlstore.Store {
	t.Helper()
	return newStore(t, openPostgres(t, servers.DSN(addr), schema), sqlstore.PostgreSQL)
}

// empty is a schema where nobody has been yet.
func empty(t *testing.T, server *servers.Server) string {
	t.Helper()
	dsn := servers.DSN(server.Addr())
	schema := newSchema(t, dsn)
	require.NoError(t, sqlstore.Migrate(t.Context(), openPostgres(t, dsn, schema), sqlstore.PostgreSQL))
	return schema
}

// TestServerCrash stops PostgreSQL at once, in the middle of what it does, and starts it again.
func TestServerCrash(t *testing.T) {
	server := servers.StartPostgres(t)
	for name, job := range map[string]crash.Job{"spending": crash.Spending(), "granting": crash.Granting()} {
		t.Run(name, func(t *testing.T) {
			schema, rounds := empty(t, server), crash.Rounds(10)
			nodes := []store.Store{node(t, server.Addr(), schema), node(t, server.Addr(), schema)}
			got, err := outage.Restarts(t.Context(), named, job, nodes, rounds, server.Kill, server.Start)
			require.NoError(t, err)
			require.Greater(t, got.Acknowledged, rounds*8)
			t.Log(got)
		})
	}
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
	if err != nil {
		return store.Outcome{}, nil
	}
	return out, err
}

// TestCuts: neither the driver nor database/sql sends a write again, and no part of an answer is taken for one.
func TestCuts(t *testing.T) {
	server := servers.StartPostgres(t)
	proxy := servers.StartProxy(t, server.Addr())
	cuts := func(stride int, breakIt func(store.Store) store.Store) (outage.Figures, error) {
		schema := empty(t, server)
		return outage.Cuts(t.Context(), named, proxy, breakIt(node(t, proxy.Addr(), schema)), node(t, server.Addr(), schema), stride)
	}
	got, err := cuts(2, func(s store.Store) store.Store { return s })
	require.NoError(t, err)
	t.Log(got)
	// Stores that do otherwise are found out.
	_, err = cuts(20, func(s store.Store) store.Store { return again{s} })
	require.ErrorContains(t, err, "carried out twice")
	_, err = cuts(20, func(s store.Store) store.Store { return hopeful{s} })
	require.ErrorContains(t, err, "were taken for one")
}

// TestOutage: with PostgreSQL away, each call of the store, the engine and the endpoints ends by its deadline and says why, and nothing is lost.
func TestOutage(t *testing.T) {
	server := servers.StartPostgres(t)
	proxy := servers.StartProxy(t, server.Addr())
	for how, harm := range map[string]struct {
		away, back func()
		unsure     bool
		limit      time.Duration
	}{
		"killed":  {server.Kill, server.Start, false, 5 * time.Second},
		"refused": {func() { proxy.Refuse(true) }, func() { proxy.Refuse(false) }, false, 5 * time.Second},
		"silent":  {func() { proxy.Set(servers.Hang()) }, func() { proxy.Set(servers.Fault{}); proxy.Drop() }, true, 200 * time.Millisecond},
	} {
		t.Run(how, func(t *testing.T) {
			o, err := outage.Prepare(t.Context(), named, node(t, proxy.Addr(), empty(t, server)))
			require.NoError(t, err)
			harm.away()
			require.NoError(t, o.Away(t.Context(), harm.limit))
			harm.back()
			require.NoError(t, o.Back(t.Context(), harm.unsure))
		})
	}
}
