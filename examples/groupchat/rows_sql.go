package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// sqlRows are two tables beside behest's, in the same SQLite file or PostgreSQL schema.
type sqlRows struct {
	db *sql.DB
	d  sqlstore.Dialect
}

// schema is for a database that is new. One row counts, so its lock orders all changes by their commits: who has seen
// a rev has seen all before it. A busier chat would do without.
var schema = [...]string{
	"CREATE TABLE groupchat_rows (place text NOT NULL, name text NOT NULL, rev bigint NOT NULL, value text NOT NULL, PRIMARY KEY (place, name))",
	"CREATE INDEX groupchat_changes ON groupchat_rows (place, rev)",
	"CREATE TABLE groupchat_count (rev bigint NOT NULL, serial bigint NOT NULL)",
	"INSERT INTO groupchat_count VALUES (0, 0)",
}

// openSQLRows makes the tables if they are not there, once, however many processes start. Behest's own are there.
func openSQLRows(ctx context.Context, db *sql.DB, d sqlstore.Dialect) (*sqlRows, error) {
	s := &sqlRows{db, d}
	there := "SELECT count(*) FROM sqlite_master WHERE name = 'groupchat_count'"
	if d == sqlstore.PostgreSQL {
		there = "SELECT count(to_regclass('groupchat_count'))"
	}
	err := s.within(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if d == sqlstore.PostgreSQL { // SQLite has one writer anyway
			if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext('groupchat'))"); err != nil {
				return err
			}
		}
		var n int
		if err := tx.QueryRowContext(ctx, there).Scan(&n); err != nil || n > 0 {
			return err
		}
		for _, statement := range schema {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("the chat's tables in %s: %w", d, err)
	}
	return s, nil
}

type txKey struct{}

// within runs f in the transaction that ctx carries, or in one of its own.
func (s *sqlRows) within(ctx context.Context, f func(context.Context, *sql.Tx) error) error {
	if tx, ok := ctx.Value(txKey{}).(*sql.Tx); ok {
		return f(ctx, tx)
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after the commit
	if err := f(context.WithValue(ctx, txKey{}, tx), tx); err != nil {
		return err
	}
	return tx.Commit()
}

// together is the outbox without an outbox: what behest writes to the store is committed with all else.
func (s *sqlRows) together(ctx context.Context, f func(context.Context, store.Store) error) error {
	return s.within(ctx, func(ctx context.Context, tx *sql.Tx) error { return f(ctx, sqlstore.Tx(tx, s.d)) })
}

func (s *sqlRows) serial(ctx context.Context) (n int64, err error) {
	err = s.within(ctx, func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "UPDATE groupchat_count SET serial = serial + 1 RETURNING serial").Scan(&n)
	})
	return n, err
}

// reader is the transaction that ctx carries, or none.
func (s *sqlRows) reader(ctx context.Context) sqlstore.Execer {
	if tx, ok := ctx.Value(txKey{}).(*sql.Tx); ok {
		return tx
	}
	return s.db
}

func (s *sqlRows) rev(ctx context.Context) (n int64, err error) {
	err = s.reader(ctx).QueryRowContext(ctx, "SELECT rev FROM groupchat_count").Scan(&n)
	return n, err
}

func (s *sqlRows) get(ctx context.Context, place, name string) (row, error) {
	r := row{name: name}
	err := s.reader(ctx).QueryRowContext(ctx, "SELECT rev, value FROM groupchat_rows WHERE place = $1 AND name = $2", place, name).Scan(&r.rev, &r.value)
	if errors.Is(err, sql.ErrNoRows) {
		return r, nil
	}
	return r, err
}

func (s *sqlRows) list(ctx context.Context, place string, after int64) ([]row, error) {
	found, err := s.reader(ctx).QueryContext(ctx, "SELECT name, rev, value FROM groupchat_rows WHERE place = $1 AND rev > $2 ORDER BY rev", place, after)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var out []row
	for found.Next() {
		var r row
		if err := found.Scan(&r.name, &r.rev, &r.value); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, found.Err()
}

func (s *sqlRows) put(ctx context.Context, place string, r row) (written bool, err error) {
	err = s.within(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var rev int64
		if err := tx.QueryRowContext(ctx, "UPDATE groupchat_count SET rev = rev + 1 RETURNING rev").Scan(&rev); err != nil {
			return err
		}
		query := "INSERT INTO groupchat_rows (place, name, rev, value) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
		args := []any{place, r.name, rev, string(r.value)}
		if r.rev > 0 {
			query = "UPDATE groupchat_rows SET rev = $3, value = $4 WHERE place = $1 AND name = $2 AND rev = $5"
			args = append(args, r.rev)
		}
		result, err := tx.ExecContext(ctx, query, args...)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		written = n == 1
		return err
	})
	return written && err == nil, err
}

func (s *sqlRows) remove(ctx context.Context, place string, names ...string) error {
	return s.within(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, name := range names {
			if _, err := tx.ExecContext(ctx, "DELETE FROM groupchat_rows WHERE place = $1 AND name = $2", place, name); err != nil {
				return err
			}
		}
		return nil
	})
}
