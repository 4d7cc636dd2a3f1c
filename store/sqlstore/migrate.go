package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"
)

// A migration that has been released never changes again; a new one gets the next number.
//
//go:embed migrations
var migrations embed.FS

// newest is the version of the schema that this package works with.
const newest = 1

// steps are the statements that lead to a version of the schema from the one before.
func (d Dialect) steps(version int) ([]string, error) {
	text, err := migrations.ReadFile(fmt.Sprintf("migrations/%s-%d.sql", strings.ToLower(d.String()), version))
	if err != nil {
		return nil, err
	}
	return strings.Split(string(text), "-- next\n"), nil
}

// Migrate brings the schema of db to the version that this package works with: from nothing, or from that of any
// earlier release. Call it at each start. It is one transaction, and any number of nodes may call it at once: one
// does the work, the others wait for it. A schema of a later release is an error, and nothing is changed. The tables
// are made in the first schema of the search_path; the caller may create tables and functions there.
func Migrate(ctx context.Context, db *sql.DB, d Dialect) error {
	switch {
	case db == nil:
		return errors.New("sqlstore: no database")
	case d == PostgreSQL:
		if err := migratePostgreSQL(ctx, db); err != nil {
			return session{d: d}.fail(ctx, err, "migrate")
		}
		return nil
	case d == SQLite:
		return immediate(ctx, db, func(conn *sql.Conn) error {
			if err := migrate(ctx, conn, d); err != nil {
				return session{d: d}.fail(ctx, err, "migrate")
			}
			return nil
		})
	}
	return d.check()
}

func migratePostgreSQL(ctx context.Context, db *sql.DB) error {
	// READ COMMITTED: who has waited for the lock sees what the one before has done.
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var encoding string
	if err := tx.QueryRowContext(ctx, "SELECT current_setting('server_encoding')").Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database's encoding is %s, want UTF8", encoding)
	}
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('behest_schema ' || current_schema(), 7105))"); err != nil {
		return err
	}
	if err := migrate(ctx, tx, PostgreSQL); err != nil {
		return err
	}
	return tx.Commit()
}

// migrate runs alone, in a transaction.
func migrate(ctx context.Context, x Execer, d Dialect) error {
	if _, err := x.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS behest_schema (version integer NOT NULL)"); err != nil {
		return err
	}
	var rows, version int
	if err := x.QueryRowContext(ctx, "SELECT count(*), coalesce(max(version), 0) FROM behest_schema").Scan(&rows, &version); err != nil {
		return err
	}
	switch {
	case version > newest:
		return fmt.Errorf("the schema is of version %d, which a later release has made; this one works with %d: update it, or use another database", version, newest)
	case version < 0 || rows > 1 || rows == 1 && version == 0:
		return fmt.Errorf("the table behest_schema is corrupt: %d rows, version %d", rows, version)
	case version == newest:
		return nil
	}
	for v := version + 1; v <= newest; v++ {
		steps, err := d.steps(v)
		if err != nil {
			return err
		}
		for i, step := range steps {
			if _, err := x.ExecContext(ctx, step); err != nil {
				return fmt.Errorf("step %d to version %d: %w", i+1, v, err)
			}
		}
	}
	record := "INSERT INTO behest_schema (version) VALUES (%d)"
	if rows == 1 {
		record = "UPDATE behest_schema SET version = %d"
	}
	_, err := x.ExecContext(ctx, fmt.Sprintf(record, newest))
	return err
}
