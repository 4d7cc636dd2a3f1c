// Package sqlite keeps records in one file, with nothing to set up: SQLite, in pure Go.
//
// The laws are those of package store. What they mean here:
//
//  1. What was acknowledged is on the disk: write-ahead log, synchronous=FULL. A commit takes one sync of the disk, and on Linux one write before it; writes that
//     wait at the same time share them, each with an outcome of its own, exactly as if they had come one after the other.
//  2. One writer. A write waits for those before it, and no longer than its context says; a write that has not begun by then does not begin.
//     Readers never wait for it.
//  3. Other processes may open the same file. They act as one store; their writers take turns.
//  4. An error says which file and what failed. A file that cannot be written to, is no database or was made by a later release is an error of Open.
//
// What may be lost: nothing that was acknowledged, by a crash of the process, the system or the power, as long as the
// disk keeps what it says it has kept. There is no fail-over: a copy of the file is as old as it is, and uses that
// were spent since it was made can be spent again. Copy it with SQLite's own backup (VACUUM INTO, or .backup), never
// while it is open by other means, and never without its -wal file. It must be on a local disk: locks of network file
// systems do not hold. When the disk is full, writes fail, those of one commit together, and the store works again when
// there is room. SQLite has no checksums over its pages: what is out of shape in a damaged file is an error, a bit that is
// wrong within a number or a text is not noticed.
//
// What it costs: a use of one of 1000 tokens by each of 64 callers at once, which is three checks, a spend and an entry in the ledger, has more than half of the rate of bare updates of one row,
// through the same driver and settings, as SQLite does them by itself, 64 in a commit. In ten runs on two cores it was 53 to 65 % of updates by 64 callers who wait for one that commits, and 50 to
// 62 % of updates by one goroutine: 68,000 to 85,000 uses a second beside 105,000 to 138,000 updates. That is of all the time; of most commits it is more, since one in hundreds also moves the log
// into the file. Uses of one and the same token are faster (BenchmarkUse). What a use has more is the work of an insert, and pages of the log.
//
// That is while the writer remembers what the uses need. It does so for up to 65,536 records, without their content (18 MB), four for a token: of 10,000 tokens it was 49 to 55 %. What is not
// remembered is looked for: where each use is of another of 50,000 tokens, it has 39 to 44 % of updates of as many rows, 30,000 to 40,000 uses a second.
//
// Entries of the ledger are entered into the index of their IDs thousands at a time, as package sqlstore says. Until then, who reads the ledger looks through up to 16,384 of
// them, which takes some 2 ms, and 14 for the latest ones of an account that has made them all; entering them holds up a commit for some 15 ms, and
// for half a second if all of them come long after later ones of their accounts.
//
// Format: the tables of package sqlstore, in a file of mode 0600 with -wal (some 32 MB; 64 to 100 while there is always somebody reading) and -shm beside it
// while it is open. A List by Owner or App alone goes through all records of the kind; one with a Prefix does not.
//
// Use:
//
//	st, err := sqlite.Open("/var/lib/social/behest.db")
//	if err != nil { … }
//	defer st.Close()
//	out, err := st.Apply(ctx, now, ops)
//
// To write records in one transaction with tables of your own, open the file yourself and use sqlstore.Tx.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

const (
	// maxGroup bounds the writes of one commit: the first of them waits for the last.
	maxGroup = 256
	// longestWait bounds how long the first write of a commit waits for others to share it.
	longestWait = 2 * time.Millisecond
	// busyTimeout is how long a statement waits for another process. Callers do not wait longer than their contexts say.
	busyTimeout = 10 * time.Second
	// retryBegin is how often a writer looks whether the other process has ended its write.
	retryBegin = time.Millisecond
	// longestShorten bounds how long writers wait for readers when the log has become too long.
	longestShorten = time.Second
	// openTimeout bounds Open, which has no context.
	openTimeout = 30 * time.Second
	// pageSize is small, since a commit writes whole pages, and a use changes a few bytes on each of some.
	pageSize = 1024
	// cacheKB bounds the pages that the connection that writes keeps in memory.
	cacheKB = 32 << 10
	// checkpointPages is how far the log grows before it is moved into the file: uses touch the same pages again and
	// again, and each is moved once.
	checkpointPages = 32 << 20 / pageSize
	// maxLog is from where on readers are waited for, so that it can begin anew.
	maxLog = 64 << 20
	// readers are the connections that read at once.
	readers = 8
	// maxPrepared bounds the statements that a connection pool keeps ready.
	maxPrepared = 256
)

// writeSettings are those of the connection that writes. The size of pages is that of a new file.
var writeSettings = fmt.Sprintf("_journal_mode=WAL&_synchronous=FULL&_txlock=immediate&_pragma=page_size(%d)&_pragma=cache_size(-%d)&_pragma=wal_autocheckpoint(%d)",
	pageSize, cacheKB, checkpointPages)

// ErrClosed is wrapped by the errors of all calls after Close.
var ErrClosed = errors.New("sqlite: the store is closed")

// A Store is a [store.Store] in one file. Make it with Open. It is safe for concurrent use; it has one goroutine, the
// writer, which Close ends.
type Store struct {
	path    string // as it was given
	file    string // absolute
	write   *sql.DB
	read    *sql.DB
	reading *prepared

	queue  *queue
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed by the writer
	once   sync.Once
	closed error
}

var _ store.Store = (*Store)(nil)

// Open opens the file at path, and makes it, with mode 0600, if it is not there; its directory must be. It brings a
// file of an earlier release up to date. Close the Store when it is not needed any more.
func Open(path string) (*Store, error) {
	s, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	return s, nil
}

func open(path string) (_ *Store, err error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return nil, errors.New("want the name of a file")
	}
	full, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := prepareFile(full); err != nil {
		return nil, err
	}
	s := &Store{path: path, file: full, queue: newQueue(), quit: make(chan struct{}), done: make(chan struct{})}
	settings := writeSettings
	vfs, err := gathering()
	if err != nil {
		return nil, err
	}
	if vfs != "" {
		settings += "&vfs=" + vfs
	}
	if s.write, err = database(full, "rw", settings); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.write.Close()
			if s.read != nil {
				s.read.Close()
			}
		}
	}()
	s.write.SetMaxOpenConns(1)
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := migrate(ctx, s.write); err != nil {
		return nil, explain(err)
	}
	if s.read, err = database(full, "rw", "_query_only=1"); err != nil {
		return nil, err
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	s.reading = &prepared{on: s.read}
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return nil, err
	}
	var mode string
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return nil, err
	}
	if mode != "wal" {
		return nil, fmt.Errorf("the journal mode is %q and cannot be made WAL", mode)
	}
	var level int
	if err := conn.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&level); err != nil {
		return nil, err
	}
	if level != 2 {
		return nil, fmt.Errorf("synchronous is %d and cannot be made FULL", level)
	}
	go newWriter(s, conn).run()
	return s, nil
}

// migrate tries again while others have the file: several that open a new one want to make it WAL, for which SQLite
// does not wait.
func migrate(ctx context.Context, db *sql.DB) error {
	const pause = 5 * time.Millisecond
	for {
		err := sqlstore.Migrate(ctx, db, sqlstore.SQLite)
		if !isBusy(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// isBusy reports whether another has what was wanted, SQLITE_BUSY.
func isBusy(err error) bool {
	var cause *sqlite.Error
	return errors.As(err, &cause) && cause.Code()&0xff == 5
}

// explain says what SQLite leaves to be guessed.
func explain(err error) error {
	const cannotOpen, readOnlyDirectory = 14, 1544 // SQLITE_CANTOPEN, SQLITE_READONLY_DIRECTORY
	var cause *sqlite.Error
	if errors.As(err, &cause) && (cause.Code()&0xff == cannotOpen || cause.Code() == readOnlyDirectory) {
		return fmt.Errorf("its directory must be writable, for the files -wal and -shm beside it: %w", err)
	}
	return err
}

// prepareFile makes the file if it is missing, and reports what SQLite would tell less clearly.
func prepareFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the directory is not there: %w", err)
	case err != nil:
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a file")
	}
	// An empty file is a new one. SQLite takes what is shorter than a page for new as well, and fills up with zeros what ends within one. Without a log that
	// would complete it, it has been cut.
	const smallestPage = 512
	if n := info.Size(); n%smallestPage != 0 {
		if log, err := os.Stat(path + "-wal"); err != nil || log.Size() == 0 {
			return fmt.Errorf("file is not a database, or a part of one: it has %d bytes", n)
		}
	}
	return nil
}

func database(path, mode, settings string) (*sql.DB, error) {
	name := url.URL{Scheme: "file", Path: filepath.ToSlash(path), OmitHost: true}
	c, err := sqlite.NewConnector(fmt.Sprintf("%s?mode=%s&_error_rc=1&_busy_timeout=%d&%s", name.String(), mode, busyTimeout.Milliseconds(), settings))
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(c), nil
}

// Close lets the writes that have begun end, refuses those that wait, and closes the file. Calls after it wrap
// [ErrClosed]. It may be called more than once.
func (s *Store) Close() error {
	s.once.Do(func() {
		close(s.quit)
		<-s.done
		if err := errors.Join(s.reading.close(), s.read.Close(), s.write.Close()); err != nil {
			s.closed = fmt.Errorf("sqlite: close %s: %w", s.path, err)
		}
	})
	return s.closed
}

func (s *Store) isClosed() bool {
	select {
	case <-s.quit:
		return true
	default:
		return false
	}
}

// fail says which file.
func (s *Store) fail(err error) error {
	switch {
	case err == nil, errors.Is(err, store.ErrInvalid):
		return err
	case s.isClosed():
		return fmt.Errorf("sqlite: %s: %w: %w", s.path, ErrClosed, err)
	}
	return fmt.Errorf("sqlite: %s: %w", s.path, err)
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	got, err := sqlstore.Tx(s.reading, sqlstore.SQLite).Get(ctx, kind, ids...)
	return got, s.fail(err)
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	got, err := sqlstore.Tx(s.reading, sqlstore.SQLite).List(ctx, q)
	return got, s.fail(err)
}

// Apply implements [store.Store].
func (s *Store) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return store.Outcome{}, err
	}
	r := requests.Get().(*request)
	// A copy: who gives up may change what it handed in, while the writer is at it.
	if err := r.call.Set(now, ops); err != nil {
		requests.Put(r)
		return store.Outcome{}, err
	}
	if err := s.submit(ctx, r); err != nil {
		return store.Outcome{}, err // and r may be the writer's still
	}
	out := r.call.Outcome
	r.state.Store(waiting)
	requests.Put(r)
	return out, nil
}

// Claim implements [store.Store].
func (s *Store) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	q.NotApps = slices.Clone(q.NotApps)
	return other(ctx, s, func(ctx context.Context, tx store.Store) ([]store.Record, error) { return tx.Claim(ctx, q, until) })
}

// Purge implements [store.Store].
func (s *Store) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	return other(ctx, s, func(ctx context.Context, tx store.Store) (int, error) { return tx.Purge(ctx, kind, before, n) })
}
