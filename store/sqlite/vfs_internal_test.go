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

	// Of logs alone:
	writes   atomic.Int64
	room     atomic.Int64 // if above zero: the bytes for which there is room, plus one
	syncing  func()       // is called before a sync of one
	underway sync.Mutex
}

func (d *disk) burnt() bool {
	if d.fuse.Load() <= 0 {
		return false
	}
	return d.fuse.Add(-1) == 0
}

// fits says for how many of n bytes there is room.
func (d *disk) fits(n int32) int32 {
	d.underway.Lock()
	defer d.underway.Unlock()
	room := d.room.Load() - 1
	if room < 0 {
		return n
	}
	n = min(n, int32(room))
	d.room.Store(room - int64(n) + 1)
	return n
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

	type which struct {
		methods uintptr
		log     bool
	}
	open := funcAt[openFunc](usual.FxOpen)
	var mu sync.Mutex
	tables := make(map[which]uintptr) // the methods of files, and what they are replaced by
	at[sqlite3.Tsqlite3_vfs](mine).FxOpen = keep(func(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32 {
		rc := open(tls, vfs, name, file, flags, out)
		f := at[sqlite3.Tsqlite3_file](file)
		if rc != sqlite3.SQLITE_OK || f.FpMethods == 0 {
			return rc
		}
		mu.Lock()
		defer mu.Unlock()
		log := flags&sqlite3.SQLITE_OPEN_WAL != 0
		this := which{f.FpMethods, log}
		if tables[this] == 0 {
			methods := at[sqlite3.Tsqlite3_io_methods](f.FpMethods)
			syncFile, write, read := funcAt[syncFunc](methods.FxSync), funcAt[accessFunc](methods.FxWrite), funcAt[accessFunc](methods.FxRead)
			table := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(*methods)))
			*at[sqlite3.Tsqlite3_io_methods](table) = *methods
			at[sqlite3.Tsqlite3_io_methods](table).FxSync = keep(syncFunc(func(tls *libc.TLS, file uintptr, flags int32) int32 {
				d.syncs.Add(1)
				if log && d.syncing != nil {
					d.syncing()
				}
				if d.sync.Load() || d.burnt() {
					return sqlite3.SQLITE_IOERR_FSYNC
				}
				return syncFile(tls, file, flags)
			}))
			at[sqlite3.Tsqlite3_io_methods](table).FxWrite = keep(accessFunc(func(tls *libc.TLS, file, from uintptr, n int32, offset int64) int32 {
				switch {
				case d.full.Load():
					return sqlite3.SQLITE_FULL
				case d.burnt():
					return sqlite3.SQLITE_IOERR_WRITE
				}
				if log {
					d.writes.Add(1)
					if part := d.fits(n); part < n {
						if rc := write(tls, file, from, part, offset); part > 0 && rc != sqlite3.SQLITE_OK {
							return rc
						}
						return sqlite3.SQLITE_FULL
					}
				}
				return write(tls, file, from, n, offset)
			}))
			at[sqlite3.Tsqlite3_io_methods](table).FxRead = keep(accessFunc(func(tls *libc.TLS, file, to uintptr, n int32, offset int64) int32 {
				if d.burnt() {
					return sqlite3.SQLITE_IOERR_READ
				}
				return read(tls, file, to, n, offset)
			}))
			tables[this] = table
		}
		f.FpMethods = tables[this]
		return rc
	})
	require.Zero(t, sqlite3.Xsqlite3_vfs_register(tls, mine, 0))
	return d
}

// setting is that of a connection to the disk; one that gathers what it writes to the log, where that is done.
func (d *disk) setting(t *testing.T) string {
	name := d.name
	if gathers {
		var err error
		name, err = gatheringOn(d.name)
		require.NoError(t, err)
	}
	return "vfs=" + name
}

var kept sync.Map // so that functions of which only SQLite knows stay where they are

func keep[F any](f F) uintptr {
	kept.Store(&f, f)
	return addressOf(f)
}
