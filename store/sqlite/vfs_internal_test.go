package sqlite

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// A disk is a VFS of SQLite that is the usual one until it is told to fail.
type disk struct {
	name  string
	sync  atomic.Bool // each sync fails
	full  atomic.Bool // each write fails for lack of room
	syncs atomic.Int64
	// fuse, if above zero, is burnt by each read, write and sync; the one at which it comes to zero fails, and that one alone.
	fuse atomic.Int64
}

func (d *disk) burnt() bool {
	if d.fuse.Load() <= 0 {
		return false
	}
	return d.fuse.Add(-1) == 0
}

var disks atomic.Int64

// newDisk registers a disk. It stays registered until the process ends, as do its few bytes outside of Go's memory.
func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{name: fmt.Sprint("behest-test-", disks.Add(1))}
	tls := libc.NewTLS()
	defer tls.Close()
	usual := at[sqlite3.Tsqlite3_vfs](sqlite3.Xsqlite3_vfs_find(tls, 0))
	name, err := libc.CString(d.name)
	require.NoError(t, err)
	mine := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(*usual)))
	*at[sqlite3.Tsqlite3_vfs](mine) = *usual
	at[sqlite3.Tsqlite3_vfs](mine).FpNext = 0
	at[sqlite3.Tsqlite3_vfs](mine).FzName = name

	type openFunc = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32
	type syncFunc = func(tls *libc.TLS, file uintptr, flags int32) int32
	type writeFunc = func(tls *libc.TLS, file, from uintptr, n int32, offset int64) int32
	open := funcAt[openFunc](usual.FxOpen)
	var mu sync.Mutex
	tables := make(map[uintptr]uintptr) // the methods of files, and what they are replaced by
	at[sqlite3.Tsqlite3_vfs](mine).FxOpen = addressOf(func(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32 {
		rc := open(tls, vfs, name, file, flags, out)
		f := at[sqlite3.Tsqlite3_file](file)
		if rc != sqlite3.SQLITE_OK || f.FpMethods == 0 {
			return rc
		}
		mu.Lock()
		defer mu.Unlock()
		if tables[f.FpMethods] == 0 {
			methods := at[sqlite3.Tsqlite3_io_methods](f.FpMethods)
			syncFile, write, read := funcAt[syncFunc](methods.FxSync), funcAt[writeFunc](methods.FxWrite), funcAt[writeFunc](methods.FxRead)
			table := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(*methods)))
			*at[sqlite3.Tsqlite3_io_methods](table) = *methods
			at[sqlite3.Tsqlite3_io_methods](table).FxSync = addressOf(syncFunc(func(tls *libc.TLS, file uintptr, flags int32) int32 {
				d.syncs.Add(1)
				if d.sync.Load() || d.burnt() {
					return sqlite3.SQLITE_IOERR_FSYNC
				}
				return syncFile(tls, file, flags)
			}))
			at[sqlite3.Tsqlite3_io_methods](table).FxWrite = addressOf(writeFunc(func(tls *libc.TLS, file, from uintptr, n int32, offset int64) int32 {
				switch {
				case d.full.Load():
					return sqlite3.SQLITE_FULL
				case d.burnt():
					return sqlite3.SQLITE_IOERR_WRITE
				}
				return write(tls, file, from, n, offset)
			}))
			at[sqlite3.Tsqlite3_io_methods](table).FxRead = addressOf(writeFunc(func(tls *libc.TLS, file, to uintptr, n int32, offset int64) int32 {
				if d.burnt() {
					return sqlite3.SQLITE_IOERR_READ
				}
				return read(tls, file, to, n, offset)
			}))
			tables[f.FpMethods] = table
		}
		f.FpMethods = tables[f.FpMethods]
		return rc
	})
	require.Zero(t, sqlite3.Xsqlite3_vfs_register(tls, mine, 0))
	return d
}

func at[T any](address uintptr) *T { return *(**T)(unsafe.Pointer(&address)) }

// funcAt and addressOf pass between functions and what SQLite, translated from C, keeps as pointers to them.
func funcAt[F any](address uintptr) F { return *(*F)(unsafe.Pointer(&struct{ uintptr }{address})) }

var kept sync.Map // so that functions of which only SQLite knows stay where they are

func addressOf[F any](f F) uintptr {
	kept.Store(&f, f)
	return *(*uintptr)(unsafe.Pointer(&struct{ f F }{f}))
}
