// Watches as programs in Go do: with fsnotify, viper and controller-runtime's certwatcher.
//
//	watch MODE DIR FILE   prints `ready`, then per callback: nanoseconds of the wall clock, event, first word of the content
//	watch pairs N         prints N key pairs as JSON, whose serial numbers are 1 to N
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/viper"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

func main() {
	args := os.Args[1:]
	if len(args) == 2 && args[0] == "pairs" {
		n, err := strconv.Atoi(args[1])
		check(err)
		printPairs(n)
		return
	}
	if len(args) != 3 {
		log.Fatal("usage: watch MODE DIR FILE | watch pairs N")
	}
	dir, path := args[1], filepath.Join(args[1], args[2])
	switch args[0] {
	case "fsnotify-dir": // the portable advice: the directory, the event that names ..data
		watchDir(dir, path, func(e fsnotify.Event) bool {
			return filepath.Base(e.Name) == "..data" && e.Has(fsnotify.Create)
		})
	case "fsnotify-dir-name": // the directory, the event that names the file
		watchDir(dir, path, func(e fsnotify.Event) bool { return e.Name == path })
	case "fsnotify-file": // the file, set once
		watchFile(path, func(fsnotify.Event) (bool, bool) { return false, true })
	case "fsnotify-file-on-remove": // the usual idiom: Chmod ignored, watched again on Remove
		watchFile(path, func(e fsnotify.Event) (bool, bool) {
			return e.Has(fsnotify.Remove), !e.Has(fsnotify.Chmod) || e.Has(fsnotify.Remove)
		})
	case "fsnotify-file-on-any": // watched again on every event but Write
		watchFile(path, func(e fsnotify.Event) (bool, bool) { return !e.Has(fsnotify.Write), true })
	case "viper":
		watchViper(path)
	case "certwatcher":
		watchCertificate(path, filepath.Join(dir, "tls.key"))
	default:
		log.Fatalf("unknown mode %q", args[0])
	}
	select {}
}

// watchDir reports the events of dir that wanted picks.
func watchDir(dir, path string, wanted func(fsnotify.Event) bool) {
	watcher, err := fsnotify.NewWatcher()
	check(err)
	check(watcher.Add(dir))
	ready()
	for event := range watcher.Events {
		if wanted(event) {
			report(event.Op.String(), read(path))
		}
	}
}

// watchFile follows one file. rule says of an event whether to watch again, and whether to reload.
func watchFile(path string, rule func(fsnotify.Event) (again, reload bool)) {
	watcher, err := fsnotify.NewWatcher()
	check(err)
	check(watcher.Add(path))
	ready()
	for event := range watcher.Events {
		again, reload := rule(event)
		if again {
			check(watcher.Add(path))
		}
		if reload {
			report(event.Op.String(), read(path))
		}
	}
}

func watchViper(path string) {
	config := viper.New()
	config.SetConfigFile(path)
	check(config.ReadInConfig())
	config.OnConfigChange(func(event fsnotify.Event) {
		report(event.Op.String(), config.GetString("value"))
	})
	config.WatchConfig()
	ready()
}

// watchCertificate reports the serial number that certwatcher hands out. Its poll is put far away: events only.
func watchCertificate(cert, key string) {
	watcher, err := certwatcher.New(cert, key)
	check(err)
	first := true
	watcher.WithWatchInterval(time.Hour).RegisterCallback(func(pair tls.Certificate) {
		if first { // the one it has already
			first = false
			return
		}
		report("certificate", "v"+strconv.FormatInt(pair.Leaf.SerialNumber.Int64()-1, 10))
	})
	go func() { check(watcher.Start(context.Background())) }()
	ready()
}

func ready() { fmt.Println("ready") }

func report(event, content string) {
	fmt.Println(time.Now().UnixNano(), strings.ReplaceAll(event, " ", ""), content)
}

// read returns the first word of the file, read through the normal path.
func read(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unreadable"
	}
	word, _, _ := strings.Cut(string(text), "\n")
	return word
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
