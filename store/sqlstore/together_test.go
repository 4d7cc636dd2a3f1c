package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// A crowd is a store whose calls for the aggregate "a" are held up until free is called: one is sent and waits, the others gather.
type crowd struct {
	*testing.T
	s     *sqlstore.Store
	db    *sql.DB // the store's
	name  string  // of its connections
	admin *sql.DB
	free  func()
	first chan error
}

func newCrowd(t *testing.T, left int64) *crowd {
	t.Helper()
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	c := &crowd{T: t, name: schema, admin: openPostgres(t, dsn, schema), db: openPostgres(t, dsn, schema, schema), first: make(chan error, 1)}
	require.NoError(t, sqlstore.Migrate(t.Context(), c.admin, sqlstore.PostgreSQL))
	c.s = newStore(t, c.db, sqlstore.PostgreSQL)
	c.s.SetPatience(time.Hour)
	applied(t, c.s, token("a", left))
	tx := begin(t, c.admin)
	applied(t, sqlstore.Tx(tx, sqlstore.PostgreSQL), store.Check("t", "a.1", 0))
	c.free = func() { require.NoError(t, tx.Rollback()) }
	go func() {
		_, err := c.s.Apply(context.Background(), now, []store.Op{store.Check("t", "a.1", 0)})
		c.first <- err
	}()
	waiting(t, c.admin, schema, 1)
	return c
}

// gathered waits until so many calls wait to be sent.
func (c *crowd) gathered(n int) {
	c.Helper()
	require.Eventually(c, func() bool { return c.s.Waiting("a") == n }, 20*time.Second, time.Millisecond)
}

// over waits until nothing is under way, and says what is left and which entries there are.
func (c *crowd) over() (left int64, entries map[string]bool) {
	c.Helper()
	require.Eventually(c, c.s.Idle, 20*time.Second, time.Millisecond, "something is kept of calls that are over")
	active(c, c.admin, c.name, "Lock", 0)
	got, err := c.s.Get(c.Context(), "token", "a.g5f0c1a2")
	require.NoError(c, err)
	ledger, err := c.s.List(c.Context(), store.Query{Kind: "ledger", Prefix: "a.", Limit: store.MaxPage})
	require.NoError(c, err)
	entries = make(map[string]bool)
	for _, r := range ledger {
		entries[r.ID] = true
	}
	return got[0].Left, entries
}

// outcomes are what each of n calls got.
type outcomes struct {
	sync.WaitGroup
	out []store.Outcome
	err []error
}

func (c *crowd) all(n int, call func(i int) (store.Outcome, error)) *outcomes {
	o := &outcomes{out: make([]store.Outcome, n), err: make([]error, n)}
	for i := range n {
		o.Go(func() { o.out[i], o.err[i] = call(i) })
	}
	return o
}

// Whatever goes together, each call is decided in turn and gets the outcome that is its own; a refusal touches nobody else.
func TestTogether(t *testing.T) {
	c := newCrowd(t, 20)
	applied(t, newStore(t, c.admin, sqlstore.PostgreSQL), store.Put(store.Record{Kind: "other", ID: "b"})) // a stranger does not wait
	const n = 80
	entry := func(i int) string { return use("a", int64(i))[4].Record.ID }
	o := c.all(n, func(i int) (store.Outcome, error) {
		ops := use("a", int64(i))
		switch i % 8 {
		case 0: // refused by an operation of its own
			ops[i/8%3] = store.Check("revocation", fmt.Sprint("a.x", i), uint64(i+1))
		case 1:
			ops[3] = store.Spend("token", fmt.Sprint("a.none", i), 1, nil)
		case 2: // of another form
			ops = []store.Op{store.Put(store.Record{Kind: "odd", ID: fmt.Sprint("a.", i), Owner: `{"\,`, App: "NULL", Data: []byte(fmt.Sprint("odd", i))}), store.Spend("count", "a.c", 1, &store.Record{Left: 100})}
		case 3: // no call at all
			ops[4].Record.ID = "b.elsewhere"
		}
		return c.s.Apply(context.Background(), now, ops)
	})
	c.gathered(n - n/8)
	c.free()
	o.Wait()
	require.NoError(t, <-c.first)
	left, entries := c.over()
	lefts, counts, used := make(map[int64]bool), make(map[int64]bool), 0
	for i := range n {
		if i%8 == 3 {
			require.ErrorIs(t, o.err[i], store.ErrInvalid)
			continue
		}
		require.NoError(t, o.err[i])
		switch out := o.out[i]; i % 8 {
		case 0:
			require.Equal(t, store.Outcome{Reason: store.Conflict, Op: i / 8 % 3}, out)
		case 1:
			require.Equal(t, store.Outcome{Reason: store.Missing, Op: 3}, out)
		case 2:
			require.True(t, out.Applied())
			require.False(t, counts[out.Left])
			counts[out.Left] = true
			got, err := c.s.Get(t.Context(), "odd", fmt.Sprint("a.", i))
			require.NoError(t, err)
			require.Equal(t, []store.Record{{Kind: "odd", ID: fmt.Sprint("a.", i), Version: 1, Owner: `{"\,`, App: "NULL", Data: []byte(fmt.Sprint("odd", i))}}, got)
		default:
			require.Equal(t, out.Applied(), entries[entry(i)], "%d", i)
			if !out.Applied() {
				require.Equal(t, store.Outcome{Reason: store.Exhausted, Op: 3, Version: 1}, out)
				continue
			}
			require.False(t, lefts[out.Left], "two got the same use")
			lefts[out.Left] = true
			used++
		}
	}
	require.Equal(t, 20, used, "not as many as there was to spend")
	require.Zero(t, left)
	require.Len(t, entries, used)
	require.Len(t, counts, n/8)
}

// One statement carries many: 64 callers of one token need few.
func TestTogetherIsOneStatement(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	admin := openPostgres(t, dsn, schema)
	require.NoError(t, sqlstore.Migrate(t.Context(), admin, sqlstore.PostgreSQL))
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	config.RuntimeParams["search_path"], config.RuntimeParams["application_name"] = schema, schema
	count := &counting{Connector: stdlib.GetConnector(*config)}
	db := sql.OpenDB(count)
	defer db.Close()
	c := &crowd{T: t, s: newStore(t, db, sqlstore.PostgreSQL), admin: admin, name: schema}
	c.s.SetPatience(time.Hour)
	applied(t, c.s, token("a", 100))
	tx := begin(t, admin)
	applied(t, sqlstore.Tx(tx, sqlstore.PostgreSQL), store.Check("t", "a.1", 0))
	before := count.statements.Load()
	o := c.all(64, func(i int) (store.Outcome, error) { return c.s.Apply(context.Background(), now, use("a", int64(i))) })
	c.gathered(63)
	require.NoError(t, tx.Rollback())
	o.Wait()
	require.Equal(t, int64(2), count.statements.Load()-before)
	left, entries := c.over()
	require.Equal(t, int64(36), left)
	require.Len(t, entries, 64)
}

// Who leaves before the call is sent has done nothing. Who leaves later does not know. Neither of them holds up or fails those who stay.
func TestTogetherCancelled(t *testing.T) {
	c := newCrowd(t, 100)
	early, leaveEarly := context.WithCancel(t.Context())
	late, leaveLate := context.WithCancel(t.Context())
	defer leaveLate()
	call := func(ctx context.Context, from int) *outcomes {
		return c.all(10, func(i int) (store.Outcome, error) { return c.s.Apply(ctx, now, use("a", int64(from+i))) })
	}
	a, b := call(early, 0), call(late, 10)
	c.gathered(20) // so that the context of the first in the next statement is one that ends
	stay := call(context.Background(), 20)
	c.gathered(30)
	leaveEarly()
	a.Wait() // though nothing has moved
	c.gathered(20)
	// Let the first go ahead and hold up the next statement, which carries the others.
	tx := begin(t, c.admin)
	var pid int
	require.NoError(t, tx.QueryRow("SELECT pg_backend_pid()").Scan(&pid))
	locked := make(chan error, 1)
	go func() {
		_, err := sqlstore.Tx(tx, sqlstore.PostgreSQL).Apply(t.Context(), now, []store.Op{store.Check("t", "a.1", 0)})
		locked <- err
	}()
	require.Eventually(t, func() bool {
		var waits bool
		require.NoError(t, c.admin.QueryRow("SELECT coalesce(wait_event = 'advisory', false) FROM pg_stat_activity WHERE pid = $1", pid).Scan(&waits))
		return waits
	}, 20*time.Second, time.Millisecond)
	c.free()
	require.NoError(t, <-c.first)
	require.NoError(t, <-locked)
	waiting(t, c.admin, c.name, 1)
	c.gathered(0)
	leaveLate()
	b.Wait() // though the server has not answered
	require.NoError(t, tx.Rollback())
	stay.Wait()
	left, entries := c.over()
	for i := range 10 {
		entry := func(from int) bool { return entries[use("a", int64(from+i))[4].Record.ID] }
		require.ErrorIs(t, a.err[i], context.Canceled)
		require.ErrorContains(t, a.err[i], `sqlstore: PostgreSQL: apply 5 operations in aggregate "a": it was not sent`)
		require.False(t, entry(0))
		require.ErrorIs(t, b.err[i], context.Canceled)
		require.NotContains(t, b.err[i].Error(), "not sent")
		require.True(t, entry(10), "it went with the others")
		require.NoError(t, stay.err[i])
		require.True(t, stay.out[i].Applied())
		require.True(t, entry(20))
	}
	require.Equal(t, int64(100-20), left)
}

// When the last one leaves, the server hears of it, and nothing waits there for nobody.
func TestTogetherAllLeave(t *testing.T) {
	c := newCrowd(t, 100)
	ctx, cancel := context.WithCancel(t.Context())
	o := c.all(8, func(i int) (store.Outcome, error) { return c.s.Apply(ctx, now, use("a", int64(i))) })
	c.gathered(8)
	_, err := c.admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", c.name) // the first
	require.NoError(t, err)
	require.Error(t, <-c.first)
	c.gathered(0)
	waiting(t, c.admin, c.name, 1) // the company, on another connection
	cancel()
	o.Wait()
	for _, err := range o.err {
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Eventually(t, c.s.Idle, 20*time.Second, time.Millisecond)
	active(t, c.admin, c.name, "Lock", 0)
	c.free()
	left, entries := c.over()
	require.Equal(t, int64(100), left)
	require.Empty(t, entries)
}

// A connection that is cut fails those on it, all or none of whom have done what they wanted, and nobody after them.
func TestTogetherCut(t *testing.T) {
	c := newCrowd(t, 100)
	o := c.all(20, func(i int) (store.Outcome, error) { return c.s.Apply(context.Background(), now, use("a", int64(i))) })
	c.gathered(20)
	cut := func() {
		_, err := c.admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", c.name)
		require.NoError(t, err)
	}
	cut()
	require.Error(t, <-c.first)
	c.gathered(0)
	waiting(t, c.admin, c.name, 1)
	cut()
	o.Wait()
	for _, err := range o.err {
		require.ErrorContains(t, err, `sqlstore: PostgreSQL: apply 5 operations in aggregate "a"`)
		require.NotErrorIs(t, err, store.ErrInvalid)
	}
	c.free()
	left, entries := c.over()
	require.Equal(t, int64(100), left)
	require.Empty(t, entries)
	require.Equal(t, int64(99), applied(t, c.s, use("a", 99)...).Left)
}

// What the operator's own rules refuse in one call fails that one.
func TestTogetherWithOneThatFails(t *testing.T) {
	c := newCrowd(t, 100)
	_, err := c.admin.Exec(`CREATE FUNCTION no_seven() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.app = ''seven'' THEN RAISE EXCEPTION ''no seven here''; END IF; RETURN NEW; END'`)
	require.NoError(t, err)
	_, err = c.admin.Exec("CREATE TRIGGER no_seven BEFORE INSERT ON behest_records FOR EACH ROW EXECUTE FUNCTION no_seven()")
	require.NoError(t, err)
	o := c.all(20, func(i int) (store.Outcome, error) {
		ops := use("a", int64(i))
		if i == 7 {
			ops[4].Record.App = "seven"
		}
		return c.s.Apply(context.Background(), now, ops)
	})
	c.gathered(20)
	c.free()
	o.Wait()
	for i, err := range o.err {
		if i == 7 {
			require.ErrorContains(t, err, "no seven here")
		} else {
			require.NoError(t, err)
			require.True(t, o.out[i].Applied())
		}
	}
	left, entries := c.over()
	require.Equal(t, int64(81), left)
	require.Len(t, entries, 19)
}

// Those who are sent once more by themselves, since one of them failed, leave by themselves: nothing goes on for somebody who has left when others have their answers.
func TestTogetherLeaveOneByOne(t *testing.T) {
	c := newCrowd(t, 100)
	for _, statement := range []string{
		`CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
			IF NEW.app = ''no'' THEN RAISE EXCEPTION ''no''; ELSIF NEW.app = ''slow'' THEN LOCK TABLE slow IN ACCESS EXCLUSIVE MODE; END IF; RETURN NEW; END'`,
		"CREATE TRIGGER odd BEFORE INSERT ON behest_records FOR EACH ROW EXECUTE FUNCTION odd()",
		"CREATE TABLE slow ()",
	} {
		_, err := c.admin.Exec(statement)
		require.NoError(t, err)
	}
	slow := begin(t, c.admin)
	_, err := slow.Exec("LOCK TABLE slow IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var o [3]*outcomes
	for i, app := range []string{"fine", "no", "slow"} { // in this order
		o[i] = c.all(1, func(int) (store.Outcome, error) {
			ops := use("a", int64(i))
			ops[4].Record.App = app
			return c.s.Apply(ctx, now, ops)
		})
		c.gathered(i + 1)
	}
	c.free()
	o[0].Wait()
	require.NoError(t, o[0].err[0])
	o[1].Wait()
	require.ErrorContains(t, o[1].err[0], "no")
	waiting(t, c.admin, c.name, 1)
	leave()
	o[2].Wait()
	require.ErrorIs(t, o[2].err[0], context.Canceled)
	left, entries := c.over()
	require.Equal(t, int64(99), left)
	require.Len(t, entries, 1)
}

// deafConn is a connection on which nothing is heard any more once the answer to a certain query is due.
type deafConn struct {
	net.Conn
	deaf atomic.Bool
}

func (c *deafConn) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "deafening") {
		c.deaf.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *deafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for err == nil && c.deaf.Load() { // what came is lost
		n, err = c.Conn.Read(b)
	}
	return n, err
}

// A call whose answer never comes holds up the others no longer than they have patience.
func TestTogetherBehindTheDeaf(t *testing.T) {
	dsn := postgresDSN(t)
	schema := newSchema(t, dsn)
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	config.RuntimeParams["search_path"] = schema
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return &deafConn{Conn: conn}, err
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.PostgreSQL))
	c := &crowd{T: t, s: newStore(t, db, sqlstore.PostgreSQL), admin: openPostgres(t, dsn, schema), name: schema}
	c.s.SetPatience(time.Millisecond)
	applied(t, c.s, token("a", 100))
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		ops := use("a", 0)
		ops[4].Record.App = "deafening"
		_, err := c.s.Apply(ctx, now, ops)
		first <- err
	}()
	require.Eventually(t, func() bool {
		got, err := newStore(t, c.admin, sqlstore.PostgreSQL).List(t.Context(), store.Query{Kind: "ledger"})
		require.NoError(t, err)
		return len(got) == 1
	}, 20*time.Second, time.Millisecond)
	o := c.all(8, func(i int) (store.Outcome, error) { return c.s.Apply(context.Background(), now, use("a", int64(i)+1)) })
	o.Wait()
	for i, err := range o.err {
		require.NoError(t, err)
		require.True(t, o.out[i].Applied())
	}
	// Once somebody has lost patience, who comes later does not wait for the deaf at all, and goes with others again.
	c.s.SetPatience(time.Hour)
	within, leave := context.WithTimeout(t.Context(), 20*time.Second)
	defer leave()
	o = c.all(8, func(i int) (store.Outcome, error) { return c.s.Apply(within, now, use("a", int64(i)+9)) })
	o.Wait()
	for i, err := range o.err {
		require.NoError(t, err)
		require.True(t, o.out[i].Applied())
	}
	cancel()
	require.ErrorIs(t, <-first, context.Canceled)
	left, entries := c.over()
	require.Equal(t, int64(83), left)
	require.Len(t, entries, 17)
}

// 64 callers of one token come and go as they please, on two nodes. What they were told is what happened.
func TestTogetherRace(t *testing.T) {
	a, b := postgresNodes(t, postgresDSN(t))
	stores := []*sqlstore.Store{newStore(t, a, sqlstore.PostgreSQL), newStore(t, b, sqlstore.PostgreSQL)}
	const callers, each = 64, 12
	uses := int64(callers * each / 2)
	applied(t, stores[0], token("a", uses))
	var told, unknown sync.Map
	var done sync.WaitGroup
	var spent atomic.Int64
	for w := range callers {
		done.Go(func() {
			for i := range each {
				ctx, cancel := context.WithCancel(context.Background())
				if i%4 == 3 {
					go cancel()
				}
				ops := use("a", int64(w*each+i))
				out, err := stores[w%2].Apply(ctx, now, ops)
				cancel()
				switch {
				case err != nil && (i%4 != 3 || ctx.Err() == nil):
					t.Error(err)
				case err != nil:
					unknown.Store(ops[4].Record.ID, true)
				case out.Applied():
					told.Store(ops[4].Record.ID, true)
					spent.Add(1)
				case out != store.Outcome{Reason: store.Exhausted, Op: 3, Version: 1}:
					t.Errorf("%+v", out)
				}
			}
		})
	}
	done.Wait()
	for _, s := range stores {
		require.Eventually(t, s.Idle, 20*time.Second, time.Millisecond)
	}
	// What was cancelled may still be on its way at the server; a call behind it waits for it.
	applied(t, stores[0], store.Check("t", "a.1", 0))
	got, err := stores[0].Get(t.Context(), "token", "a.g5f0c1a2")
	require.NoError(t, err)
	ledger, err := stores[0].List(t.Context(), store.Query{Kind: "ledger", Limit: store.MaxPage})
	require.NoError(t, err)
	require.Equal(t, uses-got[0].Left, int64(len(ledger)))
	for _, r := range ledger {
		_, was := told.Load(r.ID)
		if !was {
			_, was = unknown.Load(r.ID)
		}
		require.True(t, was, "%s was refused, and is there", r.ID)
		told.Delete(r.ID)
	}
	told.Range(func(id, _ any) bool { t.Errorf("%v was acknowledged and is lost", id); return true })
	require.LessOrEqual(t, spent.Load(), uses)
}
