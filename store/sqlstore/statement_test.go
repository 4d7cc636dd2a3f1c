package sqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// counting is a connector whose connections count what they send.
type counting struct {
	driver.Connector
	statements atomic.Int64
}

func (c *counting) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return countedConn{conn.(*stdlib.Conn), c}, nil
}

type countedConn struct {
	*stdlib.Conn
	c *counting
}

func (c countedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c.c.statements.Add(1)
	return c.Conn.PrepareContext(ctx, query)
}

func (c countedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.c.statements.Add(1)
	return c.Conn.ExecContext(ctx, query, args)
}

func (c countedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.c.statements.Add(1)
	return c.Conn.QueryContext(ctx, query, args)
}

func (c countedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c.c.statements.Add(1)
	return c.Conn.BeginTx(ctx, opts)
}

// Each call is one statement on PostgreSQL, outside of any transaction of the client's: one round trip, for a node that has never seen the record as well.
func TestOneStatement(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	require.NoError(t, sqlstore.Migrate(t.Context(), openPostgres(t, dsn, schema), sqlstore.PostgreSQL))
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	config.RuntimeParams["search_path"] = schema
	count := &counting{Connector: stdlib.GetConnector(*config)}
	db := sql.OpenDB(count)
	defer db.Close()
	s := newStore(t, db, sqlstore.PostgreSQL)
	applied(t, s, token("a", 1))
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"a use", func() error { _, err := s.Apply(t.Context(), now, use("a", 1)); return err }},
		{"a refused use", func() error { _, err := s.Apply(t.Context(), now, use("a", 2)); return err }},
		{"an issue", func() error {
			_, err := s.Apply(t.Context(), now, []store.Op{
				store.Check("revocation", "a.all", 0), store.Put(store.Record{Kind: "event", ID: "a.e"}), store.Put(store.Record{Kind: "grant", ID: "a.g"}),
				store.Put(store.Record{Kind: "push", ID: "a.g", Due: now}), store.Put(store.Record{Kind: "ledger", ID: "a.l"}), store.Spend("window", "a.w", 1, &store.Record{Left: 9}),
			})
			return err
		}},
		{"a revocation", func() error {
			_, err := s.Apply(t.Context(), now, []store.Op{store.Put(store.Record{Kind: "revocation", ID: "a.all"}), store.Put(store.Record{Kind: "ledger", ID: "a.l2"})})
			return err
		}},
		{"a Get of many", func() error { _, err := s.Get(t.Context(), "ledger", "a.l", "a.l2", "b.x"); return err }},
		{"a List", func() error { _, err := s.List(t.Context(), store.Query{Kind: "ledger", Prefix: "a."}); return err }},
		{"a Claim", func() error {
			_, err := s.Claim(t.Context(), store.Query{Kind: "push", DueBy: now}, now.Add(time.Minute))
			return err
		}},
		{"a Purge", func() error { _, err := s.Purge(t.Context(), "ledger", now.Add(time.Hour), 10); return err }},
	} {
		before := count.statements.Load()
		require.NoError(t, c.call(), c.name)
		require.Equal(t, int64(1), count.statements.Load()-before, c.name)
	}
}
