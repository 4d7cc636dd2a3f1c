package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/crash"
	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
)

// raw is the file as another program opens it.
func raw(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_busy_timeout=5000")
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

func put(id string) []store.Op {
	return []store.Op{store.Put(store.Record{Kind: "t", ID: id, Left: 9})}
}

func TestOpenMakesAPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "with space?#%41&x=y", "db")
	require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
	s := open(t, path)
	out, err := s.Apply(t.Context(), now, put("a.1"))
	require.NoError(t, err)
	require.True(t, out.Applied())
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), suffix)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	require.NoError(t, os.WriteFile(garbage, []byte(strings.Repeat("this is no database. ", 500)), 0o600))
	future := filepath.Join(dir, "future")
	require.NoError(t, open(t, future).Close())
	_, err := raw(t, future).Exec("UPDATE behest_schema SET version = 7")
	require.NoError(t, err)
	damaged := filepath.Join(dir, "damaged")
	require.NoError(t, open(t, damaged).Close())
	f, err := os.OpenFile(damaged, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("x", 4000)), 100)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	for path, want := range map[string]string{
		"":                               "want the name of a file",
		"a\x00b":                         "want the name of a file",
		dir:                              "is a directory",
		filepath.Join(dir, "none", "db"): "the directory is not there",
		filepath.Join(garbage, "db"):     "not a directory",
		garbage:                          "file is not a database",
		damaged:                          "malformed",
		future:                           "the schema is of version 7, which a later release has made",
	} {
		_, err := sqlite.Open(path)
		require.ErrorContains(t, err, "sqlite: open "+path)
		require.ErrorContains(t, err, want)
	}
}

// A damaged page that is met later is an error of the call that meets it.
func TestCorruptRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	_, err := s.Apply(t.Context(), now, put("a.1"))
	require.NoError(t, err)
	db := raw(t, path)
	_, err = db.Exec("PRAGMA ignore_check_constraints = 1")
	require.NoError(t, err)
	_, err = db.Exec("UPDATE behest_records SET left_uses = -1")
	require.NoError(t, err)
	_, err = s.Apply(t.Context(), now, []store.Op{store.Spend("t", "a.1", 1, nil)})
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, `the record of kind "t" with id "a.1" is corrupt`)
	_, err = s.Get(t.Context(), "t", "a.1")
	require.ErrorContains(t, err, `the record of kind "t" with id "a.1" is corrupt`)
	out, err := s.Apply(t.Context(), now, put("a.2"))
	require.NoError(t, err)
	require.True(t, out.Applied(), "the others are as they were")
}

// damage opens a copy of a good file that has been damaged, and asks it for all it has. Whatever it answers, it is no panic, an error names the file, and
// what is returned is as it was written: nothing is made up for what is missing.
func damage(t *testing.T, good []byte, what string, spoil func(file []byte) []byte) (failed bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	require.NoError(t, os.WriteFile(path, spoil(append([]byte(nil), good...)), 0o600))
	check := func(err error) bool {
		if err == nil {
			return false
		}
		failed = true
		require.ErrorContains(t, err, path, what)
		return true
	}
	s, err := sqlite.Open(path)
	if check(err) {
		return true
	}
	defer s.Close()
	for q := (store.Query{Kind: "ledger", Limit: 300}); ; {
		page, err := s.List(t.Context(), q)
		if check(err) || len(page) == 0 {
			break
		}
		q.After = page[len(page)-1].ID
	}
	for i := range 40 {
		_, err := s.Get(t.Context(), "ledger", fmt.Sprint("a.", i*25))
		check(err)
		_, err = s.Apply(t.Context(), now, []store.Op{store.Spend("token", fmt.Sprint("a.", i*25), 1, nil), store.Put(store.Record{Kind: "new", ID: fmt.Sprint("a.", i)})})
		check(err)
	}
	_, err = s.Claim(t.Context(), store.Query{Kind: "token", DueBy: now.Add(time.Hour)}, now.Add(time.Hour))
	check(err)
	_, err = s.Purge(t.Context(), "ledger", now.Add(time.Hour), 100)
	check(err)
	return failed
}

func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			id := fmt.Sprint("a.", i)
			if _, err := s.Apply(t.Context(), now, []store.Op{
				store.Put(store.Record{Kind: "ledger", ID: id, Owner: "li", App: "bookbot", NotAfter: now, Data: []byte(strings.Repeat(id, 20))}),
				store.Put(store.Record{Kind: "token", ID: id, Owner: "li", App: "bookbot", Due: now, NotAfter: now.Add(time.Hour), Left: 5}),
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.NoError(t, s.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	require.False(t, damage(t, good, "nothing", func(file []byte) []byte { return file }))
	for _, part := range []int{1, 100, 1023, 1024, 5000, len(good) / 2, len(good) - 1024, len(good) - 1} {
		require.True(t, damage(t, good, fmt.Sprint("cut to ", part), func(file []byte) []byte { return file[:part] }), "cut to %d bytes of %d", part, len(good))
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 2))
	found, files := 0, crash.Rounds(60)
	for i := range files {
		if damage(t, good, fmt.Sprintf("seed %d, round %d", seed, i), func(file []byte) []byte {
			for range 1 + r.IntN(40) {
				file[r.IntN(len(file))] ^= 1 << r.IntN(8)
			}
			return file
		}) {
			found++
		}
	}
	t.Logf("seed %d: of %d files with up to 40 wrong bits each, %d were found out", seed, files, found)
	require.Greater(t, found, files/6, "seed %d", seed)
}

func TestOpenAtOnce(t *testing.T) {
	for range 5 {
		path := filepath.Join(t.TempDir(), "db")
		var ready, done sync.WaitGroup
		var errs [6]error
		var stores [6]*sqlite.Store
		ready.Add(len(errs))
		for i := range errs {
			done.Go(func() {
				ready.Done()
				ready.Wait()
				stores[i], errs[i] = sqlite.Open(path)
			})
		}
		done.Wait()
		for i, err := range errs {
			require.NoError(t, err)
			out, err := stores[i].Apply(t.Context(), now, []store.Op{store.Spend("t", "a.1", 1, &store.Record{Left: 10})})
			require.NoError(t, err)
			require.Equal(t, int64(9-i), out.Left)
		}
		for _, s := range stores {
			require.NoError(t, s.Close())
		}
	}
}

// Close, in the middle of 64 writers: each is told what has become of its write, and that is so.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	var done sync.WaitGroup
	var mu sync.Mutex
	told := make(map[string]error)
	var some sync.WaitGroup
	for i := range 64 {
		some.Add(1)
		done.Go(func() {
			for j := 0; ; j++ {
				id := fmt.Sprintf("a.%d.%d", i, j)
				out, err := s.Apply(context.Background(), now, put(id))
				mu.Lock()
				told[id] = err
				mu.Unlock()
				if j == 2 {
					some.Done()
				}
				if err != nil {
					if !errors.Is(err, sqlite.ErrClosed) {
						t.Error(err)
					}
					return
				}
				if !out.Applied() {
					t.Error(out)
				}
			}
		})
	}
	some.Wait()
	require.NoError(t, s.Close())
	done.Wait()
	require.NoError(t, s.Close(), "again")
	_, get := s.Get(t.Context(), "t", "b.1")
	_, list := s.List(t.Context(), store.Query{Kind: "t"})
	_, apply := s.Apply(t.Context(), now, put("b.2"))
	_, claim := s.Claim(t.Context(), store.Query{Kind: "t", DueBy: now}, now)
	_, purge := s.Purge(t.Context(), "t", now, 1)
	for _, err := range []error{get, list, apply, claim, purge} {
		require.ErrorIs(t, err, sqlite.ErrClosed)
	}
	s = open(t, path)
	for id, err := range told {
		got, failed := s.Get(t.Context(), "t", id)
		require.NoError(t, failed)
		if err == nil {
			require.Len(t, got, 1, "%s was acknowledged and is lost", id)
		} else {
			require.Empty(t, got, "%s: %v, and yet it is there", id, err)
		}
	}
}

// Two stores on one file, as two processes have them, get their turns, however busy the other is.
func TestWritersTakeTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	stores := [2]*sqlite.Store{open(t, path), open(t, path)}
	var counts [2]atomic.Int64
	var all sync.WaitGroup
	for i, s := range stores {
		for w := range 4 {
			all.Go(func() {
				for n := 0; counts[0].Load()+counts[1].Load() < 1000; n++ {
					out, err := s.Apply(context.Background(), now, []store.Op{
						store.Spend("token", "a.t", 1, &store.Record{Left: 1 << 30}), store.Put(store.Record{Kind: "ledger", ID: fmt.Sprintf("a.%d-%d-%d", i, w, n)})})
					if err != nil || !out.Applied() {
						t.Error(out, err)
						return
					}
					counts[i].Add(1)
				}
			})
		}
	}
	all.Wait()
	done := counts[0].Load() + counts[1].Load()
	for _, s := range stores {
		got, err := s.Get(t.Context(), "token", "a.t")
		require.NoError(t, err)
		require.Equal(t, int64(1<<30)-done, got[0].Left)
	}
	require.Greater(t, min(counts[0].Load(), counts[1].Load()), done/8, "%d and %d", counts[0].Load(), counts[1].Load())
}

// Another program that holds the file costs a caller no more than its deadline. What was given up before it began is never done; what waits on is.
func TestDeadline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	db := raw(t, path)
	_, err := db.Exec("BEGIN IMMEDIATE")
	require.NoError(t, err)
	patient := make(chan error, 1)
	go func() {
		_, err := s.Apply(context.Background(), now, put("a.patient"))
		patient <- err
	}()
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := s.Apply(ctx, now, put(fmt.Sprint("a.", i)))
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, path+": waiting to write")
	}
	got, err := s.List(t.Context(), store.Query{Kind: "t"})
	require.NoError(t, err, "readers do not wait for writers")
	require.Empty(t, got)
	_, err = db.Exec("ROLLBACK")
	require.NoError(t, err)
	require.NoError(t, <-patient)
	out, err := s.Apply(t.Context(), now, put("b.1"))
	require.NoError(t, err)
	require.True(t, out.Applied())
	got, err = s.List(t.Context(), store.Query{Kind: "t"})
	require.NoError(t, err)
	require.Len(t, got, 2, "a write that was given up was done")
}
