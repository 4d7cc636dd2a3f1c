// Package sqlstore keeps records in PostgreSQL or SQLite, over the caller's *sql.DB and whatever driver it has.
//
// The laws are those of package store. What they mean here:
//
//  1. An Apply is one transaction. On PostgreSQL it is one statement and one round trip, whatever it holds: a call of the function
//     behest_apply, which locks the aggregate and then looks, so that no revocation slips in between the look and the use. While one is
//     under way, further ones for the same aggregate gather and go together in the next statement, each with an outcome of its own;
//     so many callers of one token cost few round trips. On SQLite an Apply is a BEGIN IMMEDIATE transaction; a [Group]
//     carries out many in one.
//  2. A refusal is an answer, not a failed statement: it leaves the caller's transaction (see [Tx]) as it was, and on PostgreSQL it
//     writes nothing, not even a lock on a row.
//  3. An error says which store and which call failed, wraps its cause, and means "may have happened" unless it wraps [store.ErrInvalid].
//     An Apply is sent once: what database/sql would send again, because the driver calls the connection bad, is an error, and no use is
//     spent twice.
//  4. What cannot be a record is an error that names it: never a zero, never left out.
//
// What may be lost. PostgreSQL keeps what it has acknowledged with synchronous_commit at "on", its default, and fsync
// on; with synchronous_commit off, a crash of the server takes the last moments along, and uses spent in them can be
// spent again. A replica that takes over has what reached it: it loses nothing if synchronous_standby_names includes
// it, and otherwise whatever it lagged behind, spent uses and revocations included. SQLite keeps what it has
// acknowledged with synchronous=FULL; with NORMAL in WAL mode, a power cut takes the last commits along. Never read
// from a replica what is to be checked: Get and List see what the database they ask has.
//
// Format: the table behest_records, one row a record. kind, owner and app are text as it is, so that this answers a
// real question:
//
//	SELECT kind, id, app, left_uses, not_after FROM behest_records WHERE owner = 'zhang-san' ORDER BY not_after;
//
// On SQLite the records of kind "ledger" lie elsewhere, since each use adds one: the view behest_ledger has them with
// the same columns. Behind it they are in behest_log in the order in which they were written, and in the index of their
// IDs, behest_log_runs, only when there are thousands more (with a [Group]) or at once (without): entering one at a time
// into the midst of an index cost as much as the rest of a use. A row of that index stands for up to 20 entries.
//
// An id is text, too, each byte as the character of that number (so an ASCII ID reads as it is, and the order of
// characters is that of bytes); 0 and 1 are the two characters 1 1 and 1 2. An owner, app or kind that is not UTF-8,
// or holds a zero byte or begins with "\", is "\" and then the same. due and not_after are timestamptz on PostgreSQL,
// text like "2031-05-06 07:08:09.123456" in UTC on SQLite, and NULL for never; years 1 to 9999, another is
// [store.ErrInvalid]. data is bytes: on PostgreSQL, what behest writes reads as convert_from(data, 'UTF8'). A List by
// a Prefix that names the aggregate, a Claim and a Purge find what they take by an index. A List by Owner or App
// alone goes through all records of the kind, but for an Owner on PostgreSQL, which has an index for it: each index
// more is paid by every use. Make your own where you need it. All names are looked up by the search_path of the
// connection; the database's encoding must be UTF8, its collation does not matter.
//
// Speed, as measured with PostgreSQL 15, fsync and pgx on two busy cores, in turns within one run: a whole use of a
// token (three checks, a spend, a ledger entry) by 12 callers on 1000 tokens is done 63 to 76 times while a bare
// UPDATE of one of 1000 rows, with RETURNING, is done 100 times; a use of one single token by 64 callers 68 to 100
// times, and a bare UPDATE of one single row 24 to 36 times. In this folder: go test -run '^$' -bench PostgreSQL
// -benchtime 10x.
//
// Use:
//
//	db, err := sql.Open("pgx", dsn)
//	if err := sqlstore.Migrate(ctx, db, sqlstore.PostgreSQL); err != nil { … } // at every start, on every node
//	st, err := sqlstore.New(db, sqlstore.PostgreSQL)
//
//	tx, err := db.BeginTx(ctx, nil)                                            // a message and its grant, together
//	_, err = tx.ExecContext(ctx, "INSERT INTO messages …")
//	out, err := sqlstore.Tx(tx, sqlstore.PostgreSQL).Apply(ctx, now, ops)
//	err = tx.Commit()
//
// With a [Listener], nodes on PostgreSQL hear of what others put that is due, so that they need not look all the time.
//
// For a file of one's own, with nothing to set up, see package sqlite.
package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/behest-go/behest/store"
)

// A Dialect is a kind of database. The zero Dialect is none.
type Dialect uint8

// The dialects. PostgreSQL is version 12 or later, SQLite 3.37 or later.
const (
	PostgreSQL Dialect = iota + 1
	SQLite
)

// String names the database, as errors do.
func (d Dialect) String() string {
	switch d {
	case PostgreSQL:
		return "PostgreSQL"
	case SQLite:
		return "SQLite"
	}
	return fmt.Sprintf("Dialect(%d)", uint8(d))
}

func (d Dialect) check() error {
	if d != PostgreSQL && d != SQLite {
		return fmt.Errorf("sqlstore: %v is no dialect", d)
	}
	return nil
}

// An Execer is what runs statements in a transaction: a *sql.Tx, a *sqlx.Tx as it is, the *sql.Tx of an xorm session (session.Tx().Tx).
type Execer interface {
	// ExecContext is that of *sql.DB and *sql.Tx, as are the others.
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	// QueryContext runs a query for rows.
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	// QueryRowContext runs a query for one row.
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// A Store is a [store.Store] in a database that has been migrated. Make it with New. It has nothing to close: the
// *sql.DB stays its caller's. It has a goroutine only while calls for one aggregate wait for each other on PostgreSQL,
// one for each such aggregate and a further one for each second without an answer, which ends with the last of them.
type Store struct {
	db       *sql.DB
	d        Dialect
	lanes    lanes
	patience time.Duration // of a call for the one before it
}

var _ store.Store = (*Store)(nil)

// New returns a Store over db, whose schema is as [Migrate] makes it. It does not talk to the database; what the database
// lacks is an error of the first call. Deadlines of contexts hold as far as db's driver minds them.
//
// On PostgreSQL the transactions of db must be READ COMMITTED, the server's default; any other isolation is an error
// at each Apply, since it would look at a past in which nothing has been revoked yet. On SQLite db should have a busy
// timeout, or writers that meet fail at once.
func New(db *sql.DB, d Dialect) (*Store, error) {
	if db == nil {
		return nil, errors.New("sqlstore: no database")
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	return &Store{db: db, d: d, patience: aWhile}, nil
}

// Tx returns a store within the caller's transaction: what it writes is there when that commits, and only then. A
// refusal leaves the transaction as good as it was; so does an error that wraps [store.ErrInvalid]. After any other
// error, roll it back.
//
// On PostgreSQL the aggregate of each Apply stays locked until the transaction ends, for every node: keep it short,
// and where one transaction holds several aggregates, take them in the same order everywhere. It must be READ
// COMMITTED. On SQLite the transaction should begin with BEGIN IMMEDIATE (a setting of the driver, such as
// _txlock=immediate), or with a write: one that begins by reading may find that it cannot write any more.
//
// x is used by one call at a time, as a *sql.Tx is. With an x or d that is none, each call is an error.
func Tx(x Execer, d Dialect) store.Store { return session{x: x, d: d} }

// session runs the calls of a store on x, which is in a transaction if d is SQLite.
type session struct {
	x Execer
	d Dialect
}

func (s session) check(ctx context.Context) error {
	if s.x == nil {
		return errors.New("sqlstore: no transaction")
	}
	if err := s.d.check(); err != nil {
		return err
	}
	return ctx.Err()
}

// fail says which store and what failed. The context's end comes along, however the driver has put it.
func (s session) fail(ctx context.Context, err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	over := ctx.Err()
	if at, ok := ctx.Deadline(); ok && over == nil && !time.Now().Before(at) {
		over = context.DeadlineExceeded // a socket's deadline, which is the same, may come a moment before
	}
	if over != nil && !errors.Is(err, over) {
		return fmt.Errorf("sqlstore: %v: %s: %w: %w", s.d, what, over, err)
	}
	return fmt.Errorf("sqlstore: %v: %s: %w", s.d, what, err)
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	return session{s.db, s.d}.Get(ctx, kind, ids...)
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	return session{s.db, s.d}.List(ctx, q)
}

// Apply implements [store.Store].
func (s *Store) Apply(ctx context.Context, now time.Time, ops []store.Op) (out store.Outcome, err error) {
	if err := checkApply(ctx, ops); err != nil {
		return store.Outcome{}, err
	}
	if s.d == PostgreSQL {
		aggregate := store.Aggregate(ops[0].Record.ID)
		a, err := s.together(ctx, aggregate, newCall(now, ops))
		if err == nil {
			out, err = a.outcome(ops)
		}
		if err != nil {
			return store.Outcome{}, session{s.db, s.d}.failApply(ctx, err, ops)
		}
		return out, nil
	}
	err = s.immediate(ctx, func(in session) error {
		out, err = in.Apply(ctx, now, ops)
		return err
	})
	if err != nil {
		return store.Outcome{}, err
	}
	return out, nil
}

// Claim implements [store.Store].
func (s *Store) Claim(ctx context.Context, q store.Query, until time.Time) (got []store.Record, err error) {
	if s.d == PostgreSQL {
		return session{s.db, s.d}.Claim(ctx, q, until)
	}
	if err := checkClaim(q, until); err != nil {
		return nil, err
	}
	err = s.immediate(ctx, func(in session) error {
		got, err = in.Claim(ctx, q, until)
		return err
	})
	if err != nil {
		return nil, err
	}
	return got, nil
}

// Purge implements [store.Store].
func (s *Store) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if s.d.logs(kind) { // several statements
		var removed int
		err := s.immediate(ctx, func(in session) (err error) {
			removed, err = in.Purge(ctx, kind, before, n)
			return err
		})
		return removed, err
	}
	return session{s.db, s.d}.Purge(ctx, kind, before, n)
}

// immediate runs f in a transaction of SQLite that holds the write lock from its beginning.
func (s *Store) immediate(ctx context.Context, f func(session) error) error {
	return immediate(ctx, s.db, func(conn *sql.Conn) error { return f(session{conn, s.d}) })
}

func immediate(ctx context.Context, db *sql.DB, f func(*sql.Conn) error) (err error) {
	fail := session{d: SQLite}.fail
	conn, err := db.Conn(ctx)
	if err != nil {
		return fail(ctx, err, "connect")
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		rollback(conn)
		return fail(ctx, err, "begin")
	}
	if err := f(conn); err != nil {
		rollback(conn)
		return err
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		rollback(conn)
		return fail(ctx, err, "commit")
	}
	return nil
}

// rollback ends whatever transaction there is on conn. A connection on which that fails is not used again.
func rollback(conn *sql.Conn) {
	ctx := context.Background()
	if _, err := conn.ExecContext(ctx, "ROLLBACK"); err == nil {
		return
	}
	// Perhaps there was none. Another begins only if there is none, so that says it in no driver's words.
	if _, err := conn.ExecContext(ctx, "BEGIN"); err == nil {
		if _, err = conn.ExecContext(ctx, "ROLLBACK"); err == nil {
			return
		}
	}
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}
