/** The desk: the conversation that lies open, the list of the others, and what is done to them. */

import { effect, signal } from "@preact/signals";
import { answer, liveOf, resume, whenAnswersChange } from "./answers.ts";
import { models, session } from "./session.ts";
import * as database from "./store/database.ts";
import { forgetAll, readModel, readSetup, writeModel, writeSetup } from "./store/local.ts";
import { type Conversation, type Head, type Message, type Setup, titleOf } from "./store/model.ts";

export const heads = signal<Head[]>([]);
/** The open conversation; replaced by a shallow copy when something of it changed. */
export const open = signal<Conversation>(fresh());
export const route = signal<"chat" | "status">("chat");
/** Something that can be taken back for a while. */
export const undo = signal<{ text: string; act: () => void } | null>(null);
/** A message whose text is being edited. */
export const editing = signal<string | null>(null);

function fresh(): Conversation {
  const now = Date.now();
  return {
    id: crypto.randomUUID(),
    title: "",
    created: now,
    updated: now,
    model: readModel(),
    messages: [],
    ...readSetup(),
  };
}

/** Conversations whose answers are being written stay the same object, wherever they are shown. */
const known = new Map<string, Conversation>();

function changed(conversation: Conversation): void {
  known.set(conversation.id, conversation);
  if (open.value.id === conversation.id) open.value = { ...conversation };
  void refreshHeads();
}

async function refreshHeads(): Promise<void> {
  heads.value = await database.loadHeads();
}

/** The one object that answers write into. */
function current(): Conversation {
  const { id } = open.value;
  const found = known.get(id);
  if (found) return found;
  const made = open.value;
  known.set(id, made);
  return made;
}

async function keep(conversation: Conversation): Promise<void> {
  await database.save(conversation);
  changed(conversation);
}

function model(): string {
  const wanted = open.value.model;
  return models.value.includes(wanted) ? wanted : (models.value[0] ?? wanted);
}

export function chosenModel(): string {
  return model();
}

export function chooseModel(id: string): void {
  writeModel(id);
  const conversation = current();
  conversation.model = id;
  if (conversation.messages.length > 0) void keep(conversation);
  else open.value = { ...conversation };
}

export function setUp(setup: Setup, forNew: boolean): void {
  const conversation = current();
  Object.assign(conversation, setup);
  if (forNew) writeSetup(setup);
  if (conversation.messages.length > 0) void keep(conversation);
  else open.value = { ...conversation };
}

/** Put a question, and have it answered. */
export function send(text: string): void {
  const conversation = current();
  conversation.model = model();
  conversation.title ||= titleOf(text);
  conversation.messages.push({ id: crypto.randomUUID(), role: "user", text });
  answer(conversation);
  void keep(conversation);
  history.replaceState(null, "", `#/c/${conversation.id}`);
}

/** Replace a message, and what came of it, by a new text and a new answer. */
export function replace(message: Message, text: string): void {
  cutFrom(message, "Edited; what followed was removed.");
  editing.value = null;
  if (current().messages.length === 0) current().title = "";
  send(text);
}

/** Have the question before this answer answered again. */
export function retry(message: Message): void {
  cutFrom(message, "");
  const conversation = current();
  conversation.model = model();
  answer(conversation);
  void keep(conversation);
}

function cutFrom(message: Message, said: string): void {
  const conversation = current();
  const before = [...conversation.messages];
  const { title } = conversation;
  const at = before.findIndex(({ id }) => id === message.id);
  conversation.messages.length = Math.max(0, at);
  if (!said && message.text === "") return;
  undo.value = {
    text: said || "Asked again; the answer before was removed.",
    act: () => {
      liveOf(conversation)?.stop();
      conversation.messages = before;
      conversation.title = title;
      void keep(conversation);
    },
  };
}

export function startNew(): void {
  open.value = fresh();
  editing.value = null;
  location.hash = "#/";
}

export async function removeConversation(id: string): Promise<void> {
  const conversation = known.get(id) ?? (await database.load(id));
  if (!conversation) return;
  liveOf(conversation)?.stop();
  known.delete(id);
  await database.remove(id);
  await refreshHeads();
  if (open.value.id === id) startNew();
  undo.value = {
    text: `“${conversation.title}” was deleted.`,
    act: () => void keep(conversation),
  };
}

export async function removeEverything(): Promise<void> {
  for (const conversation of known.values()) liveOf(conversation)?.stop();
  known.clear();
  forgetAll();
  await database.removeAll();
  await refreshHeads();
  startNew();
}

/** Give every conversation to its owner, as a file. */
export async function exportAll(): Promise<void> {
  const conversations = await database.loadAll();
  const text = JSON.stringify(
    { format: "millrace-conversations", version: 1, conversations },
    null,
    2,
  );
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `conversations-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function show(id: string): Promise<void> {
  if (open.value.id === id) return;
  const conversation = known.get(id) ?? (await database.load(id));
  if (!conversation) return startNew();
  known.set(id, conversation);
  open.value = { ...conversation };
  editing.value = null;
  if (session.value) resume(conversation);
}

async function readHash(): Promise<void> {
  const { hash } = location;
  route.value = hash === "#/status" ? "status" : "chat";
  const id = /^#\/c\/([\w-]+)$/.exec(hash)?.[1];
  if (id) await show(id);
  else if (hash === "#/" && open.value.messages.length > 0) open.value = fresh();
}

/** Go on with every answer that was being written: nobody else reads it, and it would be ended. */
async function resumeAll(): Promise<void> {
  for (const head of heads.value) {
    if (!head.open) continue;
    const conversation = known.get(head.id) ?? (await database.load(head.id));
    if (!conversation) continue;
    known.set(head.id, conversation);
    resume(conversation);
  }
}

export async function start(): Promise<void> {
  whenAnswersChange(changed);
  await refreshHeads();
  await readHash();
  addEventListener("hashchange", () => void readHash());
  effect(() => {
    if (session.value) void resumeAll();
  });
  database.whenChangedElsewhere(async (id) => {
    await refreshHeads();
    const here = id && known.get(id);
    if (!here || liveOf(here)) return;
    known.delete(id);
    const conversation = await database.load(id);
    if (conversation && open.value.id === id) {
      known.set(id, conversation);
      open.value = { ...conversation };
    }
  });
}
