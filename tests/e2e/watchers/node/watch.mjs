// Watches as programs in Node do. usage: watch.mjs MODE DIR FILE
// Prints `ready`, then per callback: nanoseconds of the wall clock, event, first word of the content.
import fs from 'node:fs'
import path from 'node:path'
import chokidar from 'chokidar'

const [mode, dir, name] = process.argv.slice(2)
const file = path.join(dir, name)

const say = (line) => fs.writeSync(1, line + '\n')
const ready = () => say('ready')

function report(event) {
  const now = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n
  let content = 'unreadable'
  try {
    content = fs.readFileSync(file, 'utf8').split('\n')[0]
  } catch {}
  say(`${now} ${event} ${content}`)
}

// The layout's own names begin with two dots.
const hidden = (p) => path.relative(dir, p).startsWith('..')

const modes = {
  // the directory; acts on `change` and `add` of its own path
  'chokidar-dir': () =>
    chokidar
      .watch(dir, { ignoreInitial: true })
      .on('all', (event, p) => {
        if (!hidden(p) && p === file && (event === 'change' || event === 'add')) report(event)
      })
      .on('ready', ready),

  'chokidar-file': () =>
    chokidar
      .watch(file, { ignoreInitial: true })
      .on('all', (event) => {
        if (event === 'change' || event === 'add') report(event)
      })
      .on('ready', ready),

  // the directory; acts on the event that names ..data
  'fs.watch-dir': () => {
    fs.watch(dir, (event, changed) => {
      if (changed === '..data') report(event)
    })
    ready()
  },

  // the file, set once
  'fs.watch-file': () => {
    fs.watch(file, (event) => report(event))
    ready()
  },

  // the file, watched again on `rename`
  'fs.watch-file-again': () => {
    const watch = () => {
      const watcher = fs.watch(file, (event) => {
        if (event === 'rename') {
          watcher.close()
          watch()
        }
        report(event)
      })
    }
    watch()
    ready()
  },
}
modes[mode]()
