package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"
)

// A Listener tells of what becomes due, whichever node put it, by PostgreSQL's LISTEN and NOTIFY. Make it with NewListener.
// It is what package authz calls a Waker.
type Listener struct {
	db      *sql.DB
	next    func(ctx context.Context, driverConn any) (payload string, err error)
	renewal time.Duration // how often to say that somebody listens, which shows that the connection is alive
}

// NewListener returns a Listener on a PostgreSQL database whose search_path leads to the records of a Store. It talks to
// the database in Listen only, which keeps one connection of db for itself: leave room for it. A pooler that gives out
// connections for one transaction (PgBouncer) cannot listen: give it a database of its own, without the pooler.
//
// To wait for a notification is the driver's business. next does it on a connection of the driver, which is what the
// Raw method of a *sql.Conn gives, and returns the payload; when ctx is done it returns an error that wraps ctx's and
// leaves the connection as good as it was. For pgx:
//
//	func(ctx context.Context, conn any) (string, error) {
//		n, err := conn.(*stdlib.Conn).Conn().WaitForNotification(ctx)
//		if err != nil {
//			return "", err
//		}
//		return n.Payload, nil
//	}
//
// lib/pq waits on connections of its own: write your Listen over a pq.Listener then. The channel is 'behest_' ||
// 'behest_records'::regclass::oid, the payload the app (an odd one begins with "\"), and nothing is sent but while
// behest_listening.until is not over: put it off by 90 seconds at first and every 30.
//
// What it costs: PostgreSQL has transactions that notify commit one after another, in the whole database, so while
// somebody listens issues share no sync of the disk: 16 writers made about as many grants a second as one alone, 940 to
// 1070, and 1930 while nobody listened (a shared machine with two cores). Uses notify nobody and were as fast as before.
// Where many hundreds of grants are issued a second, do not listen: looking every 250 ms finds some each time.
func NewListener(db *sql.DB, next func(ctx context.Context, driverConn any) (payload string, err error)) *Listener {
	return &Listener{db: db, next: next, renewal: 30 * time.Second}
}

// Listen calls woke with "" once it listens, and then, for each record that an Apply of any process puts and that is
// due by then, with its App, once that is committed. It returns an error when ctx is done or the connection fails:
// what is put until it is called again is not told of. woke must not block.
func (l *Listener) Listen(ctx context.Context, woke func(app string)) error {
	err := l.listen(ctx, woke)
	return session{d: PostgreSQL}.fail(ctx, err, "listen")
}

func (l *Listener) listen(ctx context.Context, woke func(app string)) error {
	if l.db == nil || l.next == nil {
		return errors.New("no database, or nothing that waits")
	}
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // nobody else is to have one that listens
		_ = conn.Close()
	}()
	var id int64
	if err := conn.QueryRowContext(ctx, "SELECT 'behest_records'::regclass::oid::bigint").Scan(&id); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, fmt.Sprint("LISTEN behest_", id)); err != nil {
		return err
	}
	if err := l.renew(ctx, conn); err != nil {
		return err
	}
	woke("")
	for {
		if err := l.hear(ctx, conn, woke); err != nil {
			return err
		}
		if err := l.renew(ctx, conn); err != nil {
			return err
		}
	}
}

// renew has nodes notify for three times as long as it is until the next.
func (l *Listener) renew(ctx context.Context, conn *sql.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := conn.ExecContext(ctx, "UPDATE behest_listening SET until = greatest(until, now() + $1::bigint * interval '1 microsecond')", 3*l.renewal.Microseconds())
	return err
}

// hear passes notifications on until it is time to renew.
func (l *Listener) hear(ctx context.Context, conn *sql.Conn, woke func(app string)) error {
	within, cancel := context.WithTimeout(ctx, l.renewal)
	defer cancel()
	for {
		var payload string
		err := conn.Raw(func(driverConn any) (err error) {
			payload, err = l.next(within, driverConn)
			return err
		})
		switch {
		case err == nil:
			app, err := wordOf(payload)
			if err != nil {
				app = "" // somebody else's
			}
			woke(app)
		case ctx.Err() == nil && within.Err() != nil:
			return nil
		default:
			return err
		}
	}
}
