package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/redisstore"
	"github.com/behest-go/behest/store/sqlite"
	"github.com/behest-go/behest/store/sqlstore"
)

// openTimeout is how long a database may take to answer at the start.
const openTimeout = 10 * time.Second

// A storage is what lasts, or does not: behest's records, the chat's own rows, and the key.
type storage struct {
	store  store.Store // nil: behest's own, which forgets
	waker  authz.Waker // nil: the store, if it is one
	rows   rows
	key    grant.Secret // zero: made for this process, or kept in the store
	inside bool         // the key is in the store
	closes []func() error
}

// Close gives everything back, in the order opposite to that in which it was taken.
func (m *storage) Close() (err error) {
	for i := len(m.closes) - 1; i >= 0; i-- {
		err = errors.Join(err, m.closes[i]())
	}
	return err
}

// checkStore looks at the flags alone.
func (o *options) checkStore() error {
	switch o.store {
	case "memory", "sqlite", "postgres", "redis":
	default:
		return fmt.Errorf("-store %q is none of memory, sqlite, postgres, redis", o.store)
	}
	shared := o.store == "postgres" || o.store == "redis"
	switch {
	case o.data != "" && o.store != "sqlite":
		return fmt.Errorf("-data is for -store sqlite, not for %s", o.store)
	case o.dsn != "" && !shared:
		return fmt.Errorf("-dsn is for -store postgres and redis, not for %s", o.store)
	case o.dsn == "" && shared:
		return fmt.Errorf("-store %s needs a -dsn", o.store)
	case o.key != "" && o.store == "memory":
		return errors.New("-key is for stores that last, not for memory")
	}
	// What cannot be read is not quoted: it may hold a password.
	if o.store == "postgres" {
		if _, err := pgx.ParseConfig(o.dsn); err != nil {
			return errors.New("-dsn is not for PostgreSQL: want postgres://user@host:5432/database, or host=… user=… dbname=…")
		}
	}
	if o.store == "redis" {
		if _, err := redis.ParseURL(o.dsn); err != nil {
			return errors.New("-dsn is not for Redis: want redis://user:password@host:6379/0")
		}
	}
	return nil
}

// open opens what the flags say. What it returns must be closed, also beside an error.
func (o *options) open(ctx context.Context, log *slog.Logger) (m *storage, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	m = &storage{}
	switch o.store {
	case "memory":
		m.rows = newMemoryRows()
		return m, nil
	case "sqlite":
		err = o.openSQLite(ctx, m)
	case "postgres":
		err = o.openPostgres(ctx, m)
	case "redis":
		err = o.openRedis(ctx, m, log)
	}
	if err == nil {
		err = m.knownKey(ctx)
	}
	return m, err
}

// openSQLite has behest and the chat in one file: behest through package sqlite, which commits many uses at once; the
// chat through a handle of its own, whose transactions behest's records can be written in.
func (o *options) openSQLite(ctx context.Context, m *storage) (err error) {
	dir := o.data
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, key := filepath.Join(dir, "groupchat.db"), o.key
	if key == "" {
		key = filepath.Join(dir, "key")
	}
	begun, err := exists(file)
	if err != nil {
		return err
	}
	if m.key, err = keyFile(key, !begun); err != nil {
		return err
	}
	st, err := sqlite.Open(file)
	if err != nil {
		return err
	}
	m.store, m.closes = st, append(m.closes, st.Close)
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	name := url.URL{Scheme: "file", Path: filepath.ToSlash(path), OmitHost: true}
	db, err := sql.Open("sqlite", name.String()+"?_pragma=busy_timeout(10000)&_pragma=synchronous(FULL)&_txlock=immediate")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(8)
	m.closes = append(m.closes, db.Close)
	m.rows, err = openSQLRows(ctx, db, sqlstore.SQLite)
	return err
}

// openPostgres has behest and the chat in one database, each over a handle of its own: transactions that wait for each
// other can take all connections of the chat's, and go on only if behest, asked by one of them, gets another.
func (o *options) openPostgres(ctx context.Context, m *storage) error {
	config, err := pgx.ParseConfig(o.dsn)
	if err != nil {
		return err
	}
	handle := func(connections int) *sql.DB {
		db := stdlib.OpenDB(*config)
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
		m.closes = append(m.closes, db.Close)
		return db
	}
	db := handle(12)
	if err := sqlstore.Migrate(ctx, db, sqlstore.PostgreSQL); err != nil {
		return err
	}
	if m.store, err = sqlstore.New(db, sqlstore.PostgreSQL); err != nil {
		return err
	}
	// What one process issues the others deliver at once.
	m.waker = sqlstore.NewListener(db, func(ctx context.Context, conn any) (string, error) {
		n, err := conn.(*stdlib.Conn).Conn().WaitForNotification(ctx)
		if err != nil {
			return "", err
		}
		return n.Payload, nil
	})
	if m.rows, err = openSQLRows(ctx, handle(8), sqlstore.PostgreSQL); err != nil {
		return err
	}
	return o.sharedKey(ctx, m)
}

func (o *options) openRedis(ctx context.Context, m *storage, log *slog.Logger) error {
	config, err := redis.ParseURL(o.dsn)
	if err != nil {
		return err
	}
	config.ContextTimeoutEnabled = true
	config.MaxRetries = -1 // a change is not made twice
	client := redis.NewClient(config)
	m.closes = append(m.closes, client.Close)
	if m.store, err = redisstore.Open(ctx, client, redisstore.Options{Logger: log}); err != nil {
		return err
	}
	m.rows = &redisRows{client}
	return o.sharedKey(ctx, m)
}

// sharedKey is one that all processes of the database have.
func (o *options) sharedKey(ctx context.Context, m *storage) error {
	if m.inside = o.key == ""; m.inside {
		return nil
	}
	var begun string
	if err := load(ctx, m.rows, inSettings, "key", &begun); err != nil {
		return err
	}
	if begun == keyInside {
		return errBegunWithout
	}
	var err error
	m.key, err = keyFile(o.key, begun == "")
	return err
}

const keyInside = "in the store"

var errBegunWithout = errors.New("the database was begun without -key: start without it")

// knownKey compares the key with that which the database was begun with: with another one, all that was granted would
// be void without a word. The hash of 256 random bits tells nothing about them.
func (m *storage) knownKey(ctx context.Context) error {
	mine := keyInside
	if !m.inside {
		sum := sha256.Sum256([]byte("groupchat, which key: " + m.key.Reveal()))
		mine = hex.EncodeToString(sum[:16])
	}
	begun, err := change(ctx, m.rows, inSettings, "key", "", func(v *string) (bool, error) {
		if *v != "" {
			return false, nil
		}
		*v = mine
		return true, nil
	})
	switch {
	case err != nil:
		return err
	case begun == mine:
		return nil
	case begun == keyInside:
		return errBegunWithout
	case m.inside:
		return errors.New("the database was begun with -key: give the same file")
	}
	return errors.New("the key is not the one that the database was begun with")
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// keyFile reads the key, or makes it: once, however many processes start at the same time, and for its owner alone.
func keyFile(path string, create bool) (grant.Secret, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !create {
			return grant.Secret{}, fmt.Errorf("the server's key: %s is not there, and the database was begun with a key: put it back, or begin elsewhere: %w", path, fs.ErrNotExist)
		}
		if err := makeKeyFile(path); err != nil {
			return grant.Secret{}, err
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return grant.Secret{}, fmt.Errorf("the server's key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return grant.Secret{}, err
	}
	if info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		return grant.Secret{}, fmt.Errorf("the server's key: others may read or write %s: chmod 600 it", path)
	}
	raw, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(raw) != 32 { // an error would quote it
		return grant.Secret{}, fmt.Errorf("the server's key: %s does not hold 64 hexadecimal digits", path)
	}
	return grant.NewSecret(string(raw)), nil
}

// makeKeyFile puts a new key in its place whole. Who comes second leaves that of the first.
func makeKeyFile(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // has mode 0600
	if wrong := (*fs.PathError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("the server's key: %s cannot be made: %w", path, wrong.Err)
	}
	if err != nil {
		return fmt.Errorf("the server's key: %w", err)
	}
	defer os.Remove(f.Name())
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	_, err = f.WriteString(hex.EncodeToString(raw[:]) + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path) // which, unlike a renaming, replaces nothing
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the server's key: %w", err)
	}
	return nil
}

// oneLine is for people at a terminal, whatever a driver has to say.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
