package sqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
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
			schema, rounds := empty(t, server), crash.Rounds(8)
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
	cuts := func(mode string, stride int, breakIt func(store.Store) store.Store) (outage.Figures, error) {
		schema := empty(t, server)
		through := newStore(t, openPostgres(t, servers.DSN(proxy.Addr())+mode, schema), sqlstore.PostgreSQL)
		return outage.Cuts(t.Context(), named, proxy, breakIt(through), node(t, server.Addr(), schema), stride)
	}
	// The ways in which the driver can ask, the first of which is the default.
	for mode, stride := range map[string]int{"": 3, "&default_query_exec_mode=exec": 20, "&default_query_exec_mode=simple_protocol": 20} {
		got, err := cuts(mode, stride, func(s store.Store) store.Store { return s })
		require.NoError(t, err, mode)
		t.Log(got)
	}
	// Stores that do otherwise are found out.
	_, err := cuts("", 20, func(s store.Store) store.Store { return again{s} })
	require.ErrorContains(t, err, "carried out twice")
	_, err = cuts("", 20, func(s store.Store) store.Store { return hopeful{s} })
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
			err = o.Away(t.Context(), harm.limit)
			harm.back()
			require.NoError(t, err)
			require.NoError(t, o.Back(t.Context(), harm.unsure))
		})
	}
}

// A forgetful driver loses answers, and calls the connection bad for it, as some do. For database/sql that means that the statement was not sent.
type forgetful struct {
	driver.Connector
	now  atomic.Bool
	sent atomic.Int64
}

func (d *forgetful) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := d.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return forgetfulConn{conn.(*stdlib.Conn), d}, nil
}

type forgetfulConn struct {
	*stdlib.Conn
	d *forgetful
}

func (c forgetfulConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.Conn.QueryContext(ctx, query, args)
	if err != nil || !c.d.now.Load() {
		return rows, err
	}
	c.d.sent.Add(1)
	for err == nil {
		err = rows.Next(make([]driver.Value, len(rows.Columns())))
	}
	return nil, errors.Join(rows.Close(), c.Conn.Close(), driver.ErrBadConn)
}

// What database/sql would send again, since the driver says that nothing was sent, is not.
func TestNothingIsSentAgain(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	direct := openPostgres(t, dsn, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), direct, sqlstore.PostgreSQL))
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	config.RuntimeParams["search_path"] = schema
	d := &forgetful{Connector: stdlib.GetConnector(*config)}
	db := sql.OpenDB(d)
	defer db.Close()
	s := newStore(t, db, sqlstore.PostgreSQL)
	applied(t, s, store.Put(store.Record{Kind: "token", ID: "a.t", Left: 1000}))
	d.now.Store(true)
	const callers = 20
	var errs [callers]error
	var all sync.WaitGroup
	for i := range callers { // one goes alone, and the others together
		all.Go(func() { _, errs[i] = s.Apply(t.Context(), now, []store.Op{store.Spend("token", "a.t", 1, nil)}) })
	}
	all.Wait()
	for _, err := range errs {
		require.ErrorContains(t, err, named+"apply 1 operations in aggregate \"a\"")
		require.ErrorIs(t, err, driver.ErrBadConn)
	}
	require.Positive(t, d.sent.Load())
	got, err := newStore(t, direct, sqlstore.PostgreSQL).Get(t.Context(), "token", "a.t")
	require.NoError(t, err)
	require.Equal(t, int64(1000-callers), got[0].Left, "each was carried out, and once")
	d.now.Store(false)
	require.Equal(t, int64(1000-callers-1), applied(t, s, store.Spend("token", "a.t", 1, nil)).Left)
}
