package sqlite

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite writes each page of its log by itself, and the few bytes before it as well: 200 calls of the system and more in a commit of 64 uses, a third of what that costs.
// The virtual file system (VFS) made here is the usual one, except that what is written to a log, one piece after the other, is gathered in memory, and written at once when
// SQLite has it synced. That is safe because
//
//   - nobody looks for it in the file before: with synchronous=FULL, SQLite syncs the log, and only then says in the -shm file that it has grown;
//   - the connection itself, which reads back what it wrote when its cache was too small, gets it written first;
//   - a transaction that is rolled back gets it written before it lets others write to the log;
//   - where writing fails, the sync does (or the next write, or the read), and SQLite rolls back: after such an error it cannot go on.

// gathers reports whether this is done: where it is tested.
const gathers = runtime.GOOS == "linux"

// gathered bounds what is gathered, in bytes. The usual VFS takes no more at once.
const gathered = 1<<17 - 1

// A tail is what follows the memory of the usual VFS for a file. It is found by the methods, which come first: SQLite calls them with the file.
type tail struct {
	methods sqlite3.Tsqlite3_io_methods // the usual ones, but for a few
	usual   *sqlite3.Tsqlite3_io_methods
	log     uintptr // of a database: the file of its log, while that is open
	base    uintptr // of a log: the file of its database
	text    uintptr // of a log: gathered bytes
	used    int32   // how many of them are to be written
	at      int64   // and where
}

// A fileSystem is a VFS that knows which one it stands on.
type fileSystem struct {
	vfs   sqlite3.Tsqlite3_vfs
	usual uintptr
	after uintptr // where in the memory of a file the tail is
}

type (
	openFunc     = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32
	closeFunc    = func(tls *libc.TLS, file uintptr) int32
	accessFunc   = func(tls *libc.TLS, file, memory uintptr, n int32, offset int64) int32 // read and write
	truncateFunc = func(tls *libc.TLS, file uintptr, size int64) int32
	syncFunc     = func(tls *libc.TLS, file uintptr, flags int32) int32
	sizeFunc     = func(tls *libc.TLS, file, size uintptr) int32
	lockFunc     = func(tls *libc.TLS, file uintptr, first, n, flags int32) int32
)

// gathering is the name of the VFS for those who write, made once in a process, since SQLite has one list of them. It is "" for the usual one.
var gathering = sync.OnceValues(func() (name string, err error) {
	if !gathers {
		return "", nil
	}
	return gatheringOn("")
})

// gatheringOn registers such a VFS on the one of that name, or on SQLite's default. It stays until the process ends.
func gatheringOn(usual string) (name string, err error) {
	tls := libc.NewTLS()
	defer tls.Close()
	which := uintptr(0)
	if usual != "" {
		if which, err = libc.CString(usual); err != nil {
			return "", err
		}
		defer libc.Xfree(tls, which)
	}
	below := sqlite3.Xsqlite3_vfs_find(tls, which)
	if below == 0 {
		return "", fmt.Errorf("SQLite has no VFS %q", usual)
	}
	name = "behest-" + libc.GoString(at[sqlite3.Tsqlite3_vfs](below).FzName)
	mine := libc.Xcalloc(tls, 1, libc.Tsize_t(unsafe.Sizeof(fileSystem{})))
	if mine == 0 {
		return "", errors.New("out of memory")
	}
	fs := at[fileSystem](mine)
	fs.vfs, fs.usual = *at[sqlite3.Tsqlite3_vfs](below), below
	fs.after = (uintptr(fs.vfs.FszOsFile) + 7) &^ 7
	fs.vfs.FszOsFile = int32(fs.after + unsafe.Sizeof(tail{}))
	fs.vfs.FpNext, fs.vfs.FxOpen = 0, addressOf(openFile)
	if fs.vfs.FzName, err = libc.CString(name); err != nil {
		return "", err
	}
	if rc := sqlite3.Xsqlite3_vfs_register(tls, mine, 0); rc != sqlite3.SQLITE_OK {
		return "", fmt.Errorf("registering a VFS: SQLite's error %d", rc)
	}
	return name, nil
}

// openFile is the xOpen of the VFS.
func openFile(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32 {
	fs := at[fileSystem](vfs)
	rc := funcAt[openFunc](at[sqlite3.Tsqlite3_vfs](fs.usual).FxOpen)(tls, fs.usual, name, file, flags, out)
	f := at[sqlite3.Tsqlite3_file](file)
	if rc != sqlite3.SQLITE_OK || f.FpMethods == 0 || flags&(sqlite3.SQLITE_OPEN_MAIN_DB|sqlite3.SQLITE_OPEN_WAL) == 0 {
		return rc
	}
	usual := at[sqlite3.Tsqlite3_io_methods](f.FpMethods)
	t := at[tail](file + fs.after)
	*t = tail{methods: *usual, usual: usual}
	if flags&sqlite3.SQLITE_OPEN_MAIN_DB != 0 {
		if usual.FiVersion >= 2 { // it has locks for the -shm file
			t.methods.FxShmLock = addressOf(lockIndex)
		}
		f.FpMethods = file + fs.after
		return rc
	}
	base := sqlite3.Xsqlite3_database_file_object(tls, name)
	if base == 0 {
		return rc
	}
	// Without memory it is a file like others.
	if t.text = libc.Xmalloc(tls, gathered); t.text == 0 {
		return rc
	}
	tailOf(base).log, t.base = file, base
	t.methods.FxClose, t.methods.FxRead, t.methods.FxWrite = addressOf(closeLog), addressOf(readLog), addressOf(writeLog)
	t.methods.FxTruncate, t.methods.FxSync, t.methods.FxFileSize = addressOf(truncateLog), addressOf(syncLog), addressOf(sizeOfLog)
	f.FpMethods = file + fs.after
	return rc
}

func tailOf(file uintptr) *tail { return at[tail](at[sqlite3.Tsqlite3_file](file).FpMethods) }

// flush writes what was gathered. After an error it is gone, as is what a disk did not take.
func (t *tail) flush(tls *libc.TLS, file uintptr) int32 {
	n := t.used
	if t.used = 0; n == 0 {
		return sqlite3.SQLITE_OK
	}
	return funcAt[accessFunc](t.usual.FxWrite)(tls, file, t.text, n, t.at)
}

func writeLog(tls *libc.TLS, file, from uintptr, n int32, offset int64) int32 {
	t := tailOf(file)
	if t.used > 0 && (offset != t.at+int64(t.used) || n > gathered-t.used) {
		if rc := t.flush(tls, file); rc != sqlite3.SQLITE_OK {
			return rc
		}
	}
	if n > gathered {
		return funcAt[accessFunc](t.usual.FxWrite)(tls, file, from, n, offset)
	}
	if t.used == 0 {
		t.at = offset
	}
	libc.Xmemcpy(tls, t.text+uintptr(t.used), from, libc.Tsize_t(n))
	t.used += n
	return sqlite3.SQLITE_OK
}

func readLog(tls *libc.TLS, file, to uintptr, n int32, offset int64) int32 {
	t := tailOf(file)
	if offset < t.at+int64(t.used) && offset+int64(n) > t.at {
		// Not the error of the write: where the disk is full, SQLite would take back one statement only, and a page would be missing from the rest.
		if rc := t.flush(tls, file); rc != sqlite3.SQLITE_OK {
			return sqlite3.SQLITE_IOERR_READ
		}
	}
	return funcAt[accessFunc](t.usual.FxRead)(tls, file, to, n, offset)
}

func syncLog(tls *libc.TLS, file uintptr, flags int32) int32 {
	t := tailOf(file)
	if rc := t.flush(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return funcAt[syncFunc](t.usual.FxSync)(tls, file, flags)
}

func truncateLog(tls *libc.TLS, file uintptr, size int64) int32 {
	t := tailOf(file)
	if rc := t.flush(tls, file); rc != sqlite3.SQLITE_OK {
		return sqlite3.SQLITE_IOERR_TRUNCATE
	}
	return funcAt[truncateFunc](t.usual.FxTruncate)(tls, file, size)
}

func sizeOfLog(tls *libc.TLS, file, size uintptr) int32 {
	t := tailOf(file)
	if rc := t.flush(tls, file); rc != sqlite3.SQLITE_OK {
		return sqlite3.SQLITE_IOERR_FSTAT
	}
	return funcAt[sizeFunc](t.usual.FxFileSize)(tls, file, size)
}

func closeLog(tls *libc.TLS, file uintptr) int32 {
	t := tailOf(file)
	rc := t.flush(tls, file)
	libc.Xfree(tls, t.text)
	tailOf(t.base).log = 0
	if closed := funcAt[closeFunc](t.usual.FxClose)(tls, file); closed != sqlite3.SQLITE_OK {
		return closed
	}
	return rc
}

// lockIndex is the xShmLock of a database. The first of its locks is that of the writer.
func lockIndex(tls *libc.TLS, file uintptr, first, n, flags int32) int32 {
	t := tailOf(file)
	if t.log != 0 && first == sqlite3.WAL_WRITE_LOCK && flags&sqlite3.SQLITE_SHM_UNLOCK != 0 {
		_ = tailOf(t.log).flush(tls, t.log) // only after a rollback is there something, and it does not matter
	}
	return funcAt[lockFunc](t.usual.FxShmLock)(tls, file, first, n, flags)
}

func at[T any](address uintptr) *T { return *(**T)(unsafe.Pointer(&address)) }

// funcAt and addressOf pass between functions and what SQLite, translated from C, keeps as pointers to them. Only what is no closure stays where it is by itself.
func funcAt[F any](address uintptr) F { return *(*F)(unsafe.Pointer(&struct{ uintptr }{address})) }

func addressOf[F any](f F) uintptr { return *(*uintptr)(unsafe.Pointer(&struct{ f F }{f})) }
