package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
)

// smallDisk mounts a file system of that size. Who may not mount skips, by name: what is tested here is also tested, with less truth, by TestFullDisk (a bound of
// pages) and TestWritesFail (a disk that only says that it is full), everywhere.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("behest", dir, "tmpfs", 0, "size="+size)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOSYS) {
		t.Skipf("mounting a small file system: %v; see TestFullDisk and TestWritesFail", err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// A disk that is full is an error to those whose writes do not fit; what was acknowledged stays; and when there is room again, all is as before,
// without another Open.
func TestSmallDisk(t *testing.T) {
	dir := smallDisk(t, "4m")
	filler := filepath.Join(dir, "filler")
	require.NoError(t, os.WriteFile(filler, make([]byte, 1<<20), 0o600))
	path := filepath.Join(dir, "db")
	s := open(t, path)
	apply := func(ops ...store.Op) (store.Outcome, error) { return s.Apply(context.Background(), now, ops) }
	_, err := apply(store.Put(store.Record{Kind: "token", ID: "a.t", Left: 1 << 40}))
	require.NoError(t, err)

	var mu sync.Mutex
	acknowledged := make(map[string]bool)
	failed := 0
	fill := func(round int) {
		var all sync.WaitGroup
		for w := range 8 {
			all.Go(func() {
				for i, errs := 0, 0; errs < 5; i++ {
					id := fmt.Sprintf("a.%d-%d-%d", round, w, i)
					out, err := apply(store.Check("revocation", "a.all", 0), store.Spend("token", "a.t", 1, nil), store.Put(store.Record{Kind: "ledger", ID: id, Data: make([]byte, 5000)}))
					mu.Lock()
					switch {
					case err != nil:
						if errs++; !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "full") {
							t.Errorf("%v: which file, and why?", err)
						}
						failed++
					case out.Applied():
						acknowledged[id] = true
					default:
						t.Errorf("refused: %+v", out)
					}
					mu.Unlock()
				}
			})
		}
		all.Wait()
	}
	whole := func() {
		t.Helper()
		there := 0
		for q := (store.Query{Kind: "ledger", Prefix: "a.", Limit: store.MaxPage}); ; {
			page, err := s.List(t.Context(), q)
			require.NoError(t, err)
			for _, r := range page {
				require.True(t, acknowledged[r.ID], "%s is there, and its caller was told of a full disk", r.ID)
				there++
			}
			if len(page) == 0 {
				break
			}
			q.After = page[len(page)-1].ID
		}
		require.Len(t, acknowledged, there, "something was acknowledged and is lost")
		got, err := s.Get(t.Context(), "token", "a.t")
		require.NoError(t, err)
		require.Equal(t, int64(1<<40-there), got[0].Left)
	}
	fill(1)
	require.Equal(t, 8*5, failed)
	require.Greater(t, len(acknowledged), 100)
	whole()
	before := len(acknowledged)

	require.NoError(t, os.Remove(filler))
	failed = 0
	fill(2)
	require.Equal(t, 8*5, failed)
	require.Greater(t, len(acknowledged), before+50, "there was room again")
	whole()

	// The next start of the process finds the disk as it is.
	require.NoError(t, s.Close())
	s, err = sqlite.Open(path)
	if err == nil {
		whole()
		require.NoError(t, s.Close())
	} else {
		require.ErrorContains(t, err, "sqlite: open "+path)
	}
	require.NoError(t, syscall.Mount("behest", dir, "tmpfs", syscall.MS_REMOUNT, "size=32m"))
	s = open(t, path)
	whole()
	_, err = apply(store.Put(store.Record{Kind: "ledger", ID: "a.last"}))
	require.NoError(t, err)
	acknowledged["a.last"] = true
	_, err = apply(store.Spend("token", "a.t", 1, nil))
	require.NoError(t, err)
	whole()
	var sound string
	require.NoError(t, raw(t, path).QueryRow("PRAGMA integrity_check").Scan(&sound))
	require.Equal(t, "ok", sound)
}

// A file that could not be made for lack of room is an error, and no obstacle later.
func TestOpenOnFullDisk(t *testing.T) {
	dir := smallDisk(t, "64k")
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	require.NoError(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.NoError(t, f.Close())
	path := filepath.Join(dir, "db")
	_, err = sqlite.Open(path)
	require.ErrorContains(t, err, "sqlite: open "+path)
	require.ErrorContains(t, err, "full")
	require.NoError(t, syscall.Mount("behest", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"))
	s := open(t, path)
	_, err = s.Apply(t.Context(), now, put("a.1"))
	require.NoError(t, err)
}

// A file system that may only be read, and one that becomes so while the store is open.
func TestReadOnlyDisk(t *testing.T) {
	dir := smallDisk(t, "8m")
	path := filepath.Join(dir, "db")
	s, err := sqlite.Open(path)
	require.NoError(t, err)
	_, err = s.Apply(t.Context(), now, put("a.1"))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, syscall.Mount("behest", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	_, err = sqlite.Open(path)
	require.ErrorIs(t, err, syscall.EROFS)
	require.ErrorContains(t, err, "sqlite: open "+path)
	require.NoError(t, syscall.Mount("behest", dir, "tmpfs", syscall.MS_REMOUNT, ""))
	got, err := open(t, path).Get(t.Context(), "t", "a.1")
	require.NoError(t, err)
	require.Len(t, got, 1)
}

// asNobody calls f with the eyes of a user who owns nothing: root may write to any file.
func asNobody(t *testing.T, dir string, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		f()
		return
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(d, info.Mode().Perm()|0o055))
	}
	runtime.LockOSThread() // and never unlock it: the thread ends with the test
	require.NoError(t, syscall.Setfsuid(65534))
	defer func() { require.NoError(t, syscall.Setfsuid(0)) }()
	f()
}

// A file that may only be read is refused when it is opened, not at the first write.
func TestReadOnlyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	require.NoError(t, open(t, path).Close())
	require.NoError(t, os.Chmod(path, 0o444))
	asNobody(t, dir, func() {
		_, err := sqlite.Open(path)
		require.ErrorIs(t, err, os.ErrPermission)
		require.ErrorContains(t, err, "sqlite: open "+path)
	})
}

// So is one beside which no log can be written, and one that cannot be made.
func TestReadOnlyDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "closed")
	require.NoError(t, os.Mkdir(dir, 0o755))
	path := filepath.Join(dir, "db")
	require.NoError(t, open(t, path).Close())
	require.NoError(t, os.Chmod(path, 0o666))
	require.NoError(t, os.Chmod(dir, 0o555))
	asNobody(t, dir, func() {
		_, err := sqlite.Open(path)
		require.ErrorContains(t, err, "sqlite: open "+path)
		require.ErrorContains(t, err, "its directory must be writable, for the files -wal and -shm beside it")
		_, err = sqlite.Open(filepath.Join(dir, "none"))
		require.ErrorIs(t, err, os.ErrPermission)
	})
}
